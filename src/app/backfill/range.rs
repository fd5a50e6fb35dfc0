//! From the options of a command line to intervals, and what is wrong with them.

use chrono::{DateTime, SecondsFormat, Utc};
use chrono_tz::Tz;

use crate::cli::{BackfillArgs, Pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::model::interval::{Bound, By, Interval, Misfit, day, midnight, split};

/// What the options ask for. `now` is the moment of the command.
pub(super) fn intervals(args: &BackfillArgs, timezone: Tz, now: DateTime<Utc>) -> Result<Vec<Interval>> {
    let intervals = match (&args.date, &args.from, &args.to) {
        (Some(date), _, _) => vec![one_day(date, timezone, now)?],
        (None, Some(from), Some(to)) => {
            let (start, end) = (bound("--from", from, timezone)?, bound("--to", to, timezone)?);
            split(start, end, by(args), timezone).map_err(|misfit| refused(misfit, from, to, args, timezone))?
        }
        _ => return Err(usage("no interval is named".to_owned()).help("write --date D, or --from A --to B")),
    };
    match intervals.iter().find(|interval| interval.start > now) {
        None => Ok(intervals),
        Some(future) => Err(usage(format!("{} lies in the future", future.label(timezone)))
            .with("now", now.with_timezone(&timezone).to_rfc3339_opts(SecondsFormat::Secs, true))
            .with("timezone of the pipeline", timezone.name())),
    }
}

/// From the first row to the end of yesterday.
pub(super) fn everything(first: DateTime<Utc>, args: &BackfillArgs, timezone: Tz, now: DateTime<Utc>) -> Vec<Interval> {
    let start = midnight(first.with_timezone(&timezone).date_naive(), timezone);
    let end = midnight(now.with_timezone(&timezone).date_naive(), timezone);
    // All rows are from today: nothing to list.
    split(start, end, by(args), timezone).unwrap_or_default()
}

fn by(args: &BackfillArgs) -> By {
    match args.by {
        Pieces::Day => By::Day,
        Pieces::Hour => By::Hour,
    }
}

fn one_day(text: &str, timezone: Tz, now: DateTime<Utc>) -> Result<Interval> {
    let today = now.with_timezone(&timezone).date_naive();
    let date = match text {
        "today" => today,
        "yesterday" => today.pred_opt().unwrap_or(today),
        text => match Bound::parse(text) {
            Some(Bound::Date(date)) => date,
            _ => {
                return Err(usage(format!("--date `{text}` is not a date"))
                    .help("write a date such as 2026-03-17, `yesterday` or `today`")
                    .help("in Airflow: --date {{ data_interval_start | ds }}"));
            }
        },
    };
    Ok(day(date, timezone))
}

fn bound(option: &str, text: &str, timezone: Tz) -> Result<DateTime<Utc>> {
    let bound = Bound::parse(text).map(|bound| bound.instant(timezone));
    bound.ok_or_else(|| {
        usage(format!("{option} `{text}` is neither a date nor a time"))
            .help("write a date such as 2026-03-17, or an RFC 3339 time such as 2026-03-17T06:00:00Z")
    })
}

fn refused(misfit: Misfit, from: &str, to: &str, args: &BackfillArgs, timezone: Tz) -> Error {
    match misfit {
        Misfit::Empty => usage(format!("the range from {from} to {to} is empty: it starts where it ends"))
            .help(
                "in Airflow 3 a cron schedule gives data_interval_start == data_interval_end; write \
                 --date {{ data_interval_start | ds }}, or schedule with CronDataIntervalTimetable",
            )
            .help("one day is --date D, or --from D --to the day after it: the end is not part of the range"),
        Misfit::Reversed => {
            usage(format!("the range from {from} to {to} ends before it starts")).help("swap --from and --to")
        }
        Misfit::Uneven(at) => {
            let (piece, finer) = match args.by {
                Pieces::Day => ("day", "write dates, or cut by hours: --by hour"),
                Pieces::Hour => ("hour", "write full hours of the pipeline's timezone"),
            };
            let local = at.with_timezone(&timezone).to_rfc3339_opts(SecondsFormat::Secs, true);
            usage(format!("{local} lies inside a {piece}"))
                .with("timezone of the pipeline", timezone.name())
                .help(finer)
        }
    }
}

pub(super) fn usage(text: String) -> Error {
    Error::new(ErrorKind::Usage, text).help("nothing was read or written")
}
