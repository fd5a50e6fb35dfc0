//! From the options of a command line to intervals, and what is wrong with them.

use chrono::{DateTime, SecondsFormat, Utc};
use chrono_tz::Tz;

use crate::cli::{BackfillArgs, Pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::model::backfill::{BackfillPlan, Mode};
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

/// What was asked for when a run was planned, as it is typed: an interval has a log of its own, and what is typed otherwise
/// is about others.
pub(in crate::app) fn typed(timezone: Tz, plan: &BackfillPlan) -> String {
    let mut typed = match plan.interval.dates(timezone) {
        Some((start, end)) => format!("--from {start} --to {end}"),
        None => {
            let time = |at: DateTime<Utc>| at.with_timezone(&timezone).to_rfc3339_opts(SecondsFormat::Secs, true);
            format!("--from {} --to {} --by hour", time(plan.interval.start), time(plan.interval.end))
        }
    };
    if plan.mode == Mode::Correction {
        typed.push_str(" --mode correction");
    }
    if let Some(reread) = &plan.reread {
        typed.push_str(&format!(" --source kafka --slack {}s", reread.slack().num_seconds()));
    }
    format!("{typed} --tables {}", plan.tables.join(","))
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

#[cfg(test)]
mod tests {
    use chrono_tz::{Africa, America, Asia, Europe};
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::model::batch::{FORMAT_VERSION, Owner};

    fn plan(interval: Interval) -> BackfillPlan {
        BackfillPlan {
            version: FORMAT_VERSION,
            run: 0,
            pipeline: "orders".into(),
            interval,
            mode: Mode::Full,
            since: None,
            since_time: None,
            reread: None,
            tables: vec!["silver.log".into(), "silver.sales".into()],
            unfinished: Vec::new(),
            batch_time: DateTime::UNIX_EPOCH,
            pinned: Default::default(),
            recipe: "r".into(),
            owner: Owner { run_id: "r".into(), host: "h".into(), pid: 1 },
        }
    }

    #[test]
    fn what_is_typed_for_a_run_is_its_interval_whatever_clocks_do() {
        let dates = [
            (Africa::Cairo, "2023-04-28"),
            (America::Santiago, "2023-09-03"),
            (Asia::Beirut, "2023-03-26"),
            (Europe::Berlin, "2026-10-25"),
        ];
        let now = DateTime::parse_from_rfc3339("2027-01-01T00:00:00Z").expect("a time").to_utc();
        for (timezone, date) in dates {
            let day = day(date.parse().expect("a date"), timezone);
            let hours = split(day.start, day.end, By::Hour, timezone).expect("hours");
            for interval in [day].into_iter().chain(hours) {
                let typed = typed(timezone, &plan(interval));
                let words = ["tidegate", "backfill", "orders.yaml"].into_iter().chain(typed.split(' '));
                let Command::Backfill(args) = Cli::try_parse_from(words).expect("it is understood").command else {
                    panic!("another command");
                };
                let found = intervals(&args, timezone, now).map_err(|error| error.to_string());
                assert_eq!(found, Ok(vec![interval]), "{timezone}: {typed}");
            }
        }
    }
}
