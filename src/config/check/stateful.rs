//! Tables that remember: `aggregate`, `dedupe`, `join`, and the watermark that bounds what they remember.

use std::time::Duration;

use super::Checker;
use super::table::Names;
use crate::config::raw::{
    Quantity, RawCalendar, RawEmit, RawJoinKind, RawLate, RawTable, RawWatermark, RawWindow, RawWrite,
};
use crate::config::spec::{
    AggregateSpec, DedupeSpec, From, JoinSpec, KeepsSpec, OperatorSpec, SourceSpec, WatermarkSpec, WriteSpec,
};
use crate::error::Code;
use crate::model::window::{CalendarUnit, Emit, Late, Micros, Window};
use crate::units;

const MINUTE: Micros = 60_000_000;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;
/// Memory of one table's state, unless the file says otherwise.
const LIMIT: u64 = 1_000_000_000;

/// Columns of a window's bounds.
pub const WINDOW_COLUMNS: [&str; 2] = ["window_start", "window_end"];

impl Checker<'_> {
    /// What the table remembers; the keys that only make sense with it are refused without.
    pub(super) fn keeps(
        &mut self,
        name: &str,
        raw: &RawTable,
        from: Option<&From>,
        names: &Names<'_>,
        sources: &std::collections::BTreeMap<String, SourceSpec>,
        timezone: chrono_tz::Tz,
    ) -> Option<KeepsSpec> {
        let named =
            [("aggregate", raw.aggregate.is_some()), ("dedupe", raw.dedupe.is_some()), ("join", raw.join.is_some())];
        let given: Vec<&str> = named.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [first, second, ..] = given.as_slice() {
            let message = format!("`{name}` has both `{first}` and `{second}`");
            let help = "give each a table of its own, one `from` the other: `dedupe` before `join` before `aggregate`"
                .to_string();
            self.refuse(&["tables", name, second], message, "one of them", Some(help));
            return None;
        }
        if given.is_empty() {
            for (key, given) in
                [("watermark", raw.watermark.is_some()), ("emit", raw.emit.is_some()), ("state", raw.state.is_some())]
            {
                if given {
                    let label = "only with `aggregate`, `dedupe` or `join`";
                    self.refuse_key(&["tables", name, key], format!("`{key}` has no meaning for `{name}`"), label);
                }
            }
            return None;
        }
        if raw.emit.is_some() && raw.aggregate.is_none() {
            self.refuse_key(
                &["tables", name, "emit"],
                format!("`emit` has no meaning for `{name}`"),
                "for `aggregate`",
            );
        }
        self.steady_inputs(name, raw, names);
        let operator = match (&raw.aggregate, &raw.dedupe, &raw.join) {
            (Some(_), _, _) => self.aggregate(name, raw, timezone),
            (_, Some(dedupe), _) => {
                let within = self.within(name, "dedupe", dedupe.within.as_ref());
                let key = self.names_list(&["tables", name, "dedupe", "key"], Some(&dedupe.key));
                if key.is_empty() {
                    self.refuse(&["tables", name, "dedupe", "key"], "`dedupe` needs at least one key column", "", None);
                }
                Some(OperatorSpec::Dedupe(DedupeSpec { key, within: within? }))
            }
            (_, _, Some(join)) => {
                let within = self.within(name, "join", join.within.as_ref());
                let on = self.names_list(&["tables", name, "join", "on"], Some(&join.on));
                if on.is_empty() {
                    self.refuse(&["tables", name, "join", "on"], "`join` needs at least one column to match", "", None);
                }
                let right = self.upstream(name, &["tables", name, "join", "right"], &join.right, names);
                if join.left == join.right {
                    let label = "the other side";
                    let message = format!("`{}` is joined with itself", join.left);
                    self.refuse(&["tables", name, "join", "right"], message, label, None);
                }
                let outer = matches!(join.kind, Some(RawJoinKind::Left));
                Some(OperatorSpec::Join(JoinSpec { right: right?, on, within: within?, outer }))
            }
            _ => None,
        };
        let columns = self.event_times(name, raw, from, operator.as_ref(), names, sources);
        let watermark = self.watermark(name, raw, operator.as_ref(), columns);
        let limit = raw.state.as_ref().and_then(|state| state.limit.as_ref());
        let limit = self.quantity(&["tables", name, "state", "limit"], limit, units::size).unwrap_or(LIMIT);
        Some(KeepsSpec { operator: operator?, watermark: watermark?, limit })
    }

    /// How the rows of an aggregate enter the table.
    pub(super) fn write_of_windows(&mut self, name: &str, raw: &RawTable, operator: &AggregateSpec) -> WriteSpec {
        if !matches!(raw.write, None | Some(RawWrite::Append)) {
            let label = "remove it";
            let message = format!("`emit` says how the rows of `{name}` are written");
            self.refuse_key(&["tables", name, "write"], message, label);
        }
        match operator.emit {
            Emit::Final => WriteSpec::Append,
            Emit::Update | Emit::Complete => {
                let start = operator.window.map(|_| WINDOW_COLUMNS[0].to_string());
                WriteSpec::Windows { by: operator.by.iter().cloned().chain(start).collect() }
            }
        }
    }

    /// What is counted once must arrive once.
    fn steady_inputs(&mut self, name: &str, raw: &RawTable, names: &Names<'_>) {
        let sides: Vec<(&str, Vec<&str>)> = match &raw.join {
            Some(join) => vec![
                (join.left.as_str(), vec!["tables", name, "join", "left"]),
                (join.right.as_str(), vec!["tables", name, "join", "right"]),
            ],
            None => raw.from.iter().map(|from| (from.as_str(), vec!["tables", name, "from"])).collect(),
        };
        let key = match (&raw.aggregate, &raw.dedupe) {
            (Some(_), _) => "aggregate",
            (_, Some(_)) => "dedupe",
            _ => "join",
        };
        for (from, path) in sides {
            let Some(upstream) = names.raw.tables.get(from) else { continue };
            let changes = match &upstream.write {
                Some(RawWrite::Upsert(_)) => true,
                Some(RawWrite::Refresh(_)) => true,
                _ => upstream.aggregate.is_some() && !matches!(upstream.emit, Some(RawEmit::Final)),
            };
            if changes {
                let message = format!("rows of `{from}` change, and `{key}` would take every change for a new row");
                let help = match key {
                    "aggregate" => format!(
                        "aggregate a table changes with `write: {{refresh: {{by: …}}}}`, or feed `{name}` from the table before"
                    ),
                    _ => format!("feed `{name}` from a table that only adds rows"),
                };
                self.refuse(&path, message, "not a table that only adds rows", Some(help));
            }
        }
    }

    fn within(&mut self, name: &str, key: &str, raw: Option<&Quantity>) -> Option<Micros> {
        let path = ["tables", name, key, "within"];
        if raw.is_none() {
            let message = format!("`{key}` of `{name}` has no bound: it would remember every row for ever");
            let problem = "add `within: 24h`";
            self.refuse(
                &["tables", name, key],
                message,
                problem,
                Some(match key {
                    "dedupe" => {
                        "rows of one key count as one where their event times are less than `within` apart".into()
                    }
                    _ => "rows match where their event times are at most `within` apart".into(),
                }),
            );
            return None;
        }
        let within = micros(self.quantity(&path, raw, units::duration)?);
        if within == 0 && key == "dedupe" {
            self.refuse_as(Code::WrongValue, &path, "`within` must be above zero", "", None);
        }
        Some(within)
    }

    fn aggregate(&mut self, name: &str, raw: &RawTable, timezone: chrono_tz::Tz) -> Option<OperatorSpec> {
        let aggregate = raw.aggregate.as_ref()?;
        let by = self.names_list(&["tables", name, "aggregate", "by"], aggregate.by.as_ref());
        let emit = match raw.emit {
            None | Some(RawEmit::Update) => Emit::Update,
            Some(RawEmit::Final) => Emit::Final,
            Some(RawEmit::Complete) => Emit::Complete,
        };
        let written = self.document.keys(&["tables", name, "aggregate", "measures"]);
        let measures: Vec<(String, String)> = written
            .into_iter()
            .filter_map(|measure| aggregate.measures.get(&measure).map(|sql| (measure.clone(), sql.clone())))
            .collect();
        if measures.is_empty() {
            let help = "such as `measures: {orders: count(*)}`".to_owned();
            let path = ["tables", name, "aggregate", "measures"];
            self.refuse(&path, format!("`{name}` measures nothing"), "", Some(help));
        }
        for (measure, _) in &measures {
            if by.contains(measure) || WINDOW_COLUMNS.contains(&measure.as_str()) {
                let path = ["tables", name, "aggregate", "measures", measure];
                self.refuse_key(&path, format!("`{name}` would have two columns `{measure}`"), "choose another name");
            }
        }
        for column in by.iter().filter(|column| WINDOW_COLUMNS.contains(&column.as_str())) {
            let path = ["tables", name, "aggregate", "by"];
            self.refuse(&path, format!("`{column}` is the window's own column"), "remove it", None);
        }
        let window = match &aggregate.window {
            Some(window) => Some(self.window(name, window, timezone)?),
            None => None,
        };
        if window.is_none() && by.is_empty() {
            let help = "a total over everything is one row: say what it is `by`, or cut time with `window`".to_owned();
            let message = format!("`{name}` has neither `window` nor `by`");
            self.refuse(&["tables", name, "aggregate"], message, "", Some(help));
        }
        if window.is_none() && emit == Emit::Final {
            let help = "without a window nothing ever ends; say `emit: update`".to_owned();
            self.refuse(&["tables", name, "emit"], "running totals are never final", "", Some(help));
        }
        Some(OperatorSpec::Aggregate(AggregateSpec { window, by, measures, emit }))
    }

    fn window(&mut self, name: &str, raw: &RawWindow, timezone: chrono_tz::Tz) -> Option<Window> {
        let path = |key| ["tables", name, "aggregate", "window", key];
        let kinds =
            [("tumbling", raw.tumbling.as_ref()), ("sliding", raw.sliding.as_ref()), ("session", raw.session.as_ref())];
        let given: Vec<(&str, &Quantity)> = kinds.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
        let one_of = "`window` takes exactly one of: tumbling, sliding (with every), session, calendar";
        let refuse_shape = |checker: &mut Self| {
            let help =
                "such as {tumbling: 1m}, {sliding: 15m, every: 2m}, {session: 30m} or {calendar: day}".to_owned();
            checker.refuse(&["tables", name, "aggregate", "window"], one_of, "", Some(help));
        };
        if raw.every.is_some() && raw.sliding.is_none() {
            self.refuse_key(&path("every"), "`every` goes with `sliding`", "remove it, or say `sliding`");
        }
        let (key, length) = match (given.as_slice(), raw.calendar) {
            ([], Some(unit)) => {
                let unit = match unit {
                    RawCalendar::Day => CalendarUnit::Day,
                    RawCalendar::Week => CalendarUnit::Week,
                    RawCalendar::Month => CalendarUnit::Month,
                };
                return Some(Window::Calendar { unit, timezone });
            }
            ([(key, length)], None) => (*key, *length),
            _ => {
                refuse_shape(self);
                return None;
            }
        };
        let length = micros(self.quantity(&path(key), Some(length), units::duration)?);
        let window = match key {
            "tumbling" => Window::Tumbling { size: length },
            "session" => Window::Session { gap: length },
            _ => {
                let Some(every) = &raw.every else {
                    let help =
                        format!("such as {{sliding: {}, every: 1m}}", raw.sliding.as_ref().map_or("15m", |q| &q.0));
                    self.refuse(&path("sliding"), "a sliding window needs `every`", "how often one starts", Some(help));
                    return None;
                };
                let every = micros(self.quantity(&path("every"), Some(every), units::duration)?);
                Window::Sliding { size: length, every }
            }
        };
        if let Some(misfit) = window.misfit() {
            let key = if misfit.field == "every" { "every" } else { key };
            self.refuse_as(Code::WrongValue, &path(key), misfit.message, "", Some(misfit.mend));
            return None;
        }
        Some(window)
    }

    /// The event-time column of every input.
    fn event_times(
        &mut self,
        name: &str,
        raw: &RawTable,
        from: Option<&From>,
        operator: Option<&OperatorSpec>,
        names: &Names<'_>,
        sources: &std::collections::BTreeMap<String, SourceSpec>,
    ) -> Option<Vec<String>> {
        if let Some(column) = raw.watermark.as_ref().and_then(|watermark| watermark.event_time.clone()) {
            let inputs = if raw.join.is_some() { 2 } else { 1 };
            return Some(vec![column; inputs]);
        }
        let needs_time = !matches!(operator, Some(OperatorSpec::Aggregate(AggregateSpec { window: None, .. })));
        let right = match operator {
            Some(OperatorSpec::Join(join)) => Some(&join.right),
            _ => None,
        };
        let mut columns = Vec::new();
        for from in from.into_iter().chain(right) {
            // A table in between that is windowed has the end of the window as its time.
            let (source, windowed) = root(from, names)?;
            let column = match (windowed, sources.get(&source).map(|source| source.event_time.clone())) {
                (true, _) => Some(WINDOW_COLUMNS[1].to_string()),
                (false, Some(column)) => column,
                // The source is broken, which was said.
                (false, None) => return None,
            };
            match column {
                Some(column) => columns.push(column),
                None if !needs_time => columns.push(String::new()),
                None => {
                    let message = format!("`{name}` needs event times, and the source `{source}` has no `event_time`");
                    let help = format!(
                        "say which column it is: `{}: {{… event_time: updated_at}}`",
                        match names.raw.source {
                            Some(_) => "source".to_string(),
                            None => format!("sources: {{{source}"),
                        }
                    );
                    let key = if raw.aggregate.is_some() {
                        "aggregate"
                    } else if raw.dedupe.is_some() {
                        "dedupe"
                    } else {
                        "join"
                    };
                    self.refuse_key_with(&["tables", name, key], message, "no event time", help);
                    return None;
                }
            }
        }
        Some(columns)
    }

    fn watermark(
        &mut self,
        name: &str,
        raw: &RawTable,
        operator: Option<&OperatorSpec>,
        columns: Option<Vec<String>>,
    ) -> Option<WatermarkSpec> {
        let none = RawWatermark {
            delay: None,
            late: None,
            keep: None,
            max_ahead: None,
            idle: None,
            idle_after: None,
            event_time: None,
        };
        let given = raw.watermark.as_ref().unwrap_or(&none);
        let endless = matches!(operator, Some(OperatorSpec::Aggregate(aggregate))
            if aggregate.window.is_none() || aggregate.emit == Emit::Complete);
        let is_bounded = matches!(operator, Some(OperatorSpec::Dedupe(_)));
        if operator.is_some() && given.delay.is_none() && !endless && !is_bounded {
            let message = format!("`{name}` does not say how late rows may be");
            let help = "`watermark: {delay: 5m}`: what is more than that behind the newest rows is late; without it \
                        nothing would ever be closed or let go of";
            let key = if raw.aggregate.is_some() { "aggregate" } else { "join" };
            self.refuse_key_with(&["tables", name, key], message, "needs `watermark: {delay: …}`", help.to_string());
            return None;
        }
        let mut length = |key: &str, raw: Option<&Quantity>| -> Option<Micros> {
            self.quantity(&["tables", name, "watermark", key], raw, units::duration).map(micros)
        };
        let delay = length("delay", given.delay.as_ref()).unwrap_or(0);
        let keep = length("keep", given.keep.as_ref());
        let max_ahead = length("max_ahead", given.max_ahead.as_ref()).unwrap_or(HOUR);
        let idle = length("idle", given.idle.as_ref()).unwrap_or(WatermarkSpec::IDLE);
        let idle_after = length("idle_after", given.idle_after.as_ref());
        if given.keep.is_some() && !matches!(given.late, Some(RawLate::Update)) {
            let label = "remove it, or say `late: update`";
            self.refuse_key(&["tables", name, "watermark", "keep"], "`keep` goes with `late: update`", label);
        }
        let late = match given.late {
            None | Some(RawLate::Quarantine) => Late::Quarantine,
            Some(RawLate::Drop) => Late::Drop,
            Some(RawLate::Update) => Late::Update { keep: keep.unwrap_or(DAY) },
        };
        if let (Late::Update { .. }, Some(operator)) = (late, operator) {
            let path = ["tables", name, "watermark", "late"];
            match operator {
                OperatorSpec::Aggregate(aggregate) if aggregate.emit == Emit::Final => {
                    let help = "say `emit: update`, or `late: quarantine`".to_owned();
                    self.refuse(&path, "rows of `emit: final` never change", "", Some(help));
                }
                OperatorSpec::Aggregate(_) => {}
                _ => {
                    let help = "say `late: quarantine` or `late: drop`; a larger `delay` waits longer".to_owned();
                    self.refuse(&path, "`late: update` is for windows that are updated", "", Some(help));
                }
            }
        }
        Some(WatermarkSpec { delay, late, max_ahead, idle, idle_after, columns: columns? })
    }
}

/// The source that a table's rows come from, and whether they pass windows on the way.
fn root(from: &From, names: &Names<'_>) -> Option<(String, bool)> {
    let mut from = from.clone();
    for _ in 0..=names.raw.tables.len() {
        match from {
            From::Source(source) => return Some((source, false)),
            From::Table(name) => {
                let table = names.raw.tables.get(&name)?;
                let above = table.from.clone().or_else(|| table.join.as_ref().map(|join| join.left.clone()))?;
                let is_source = names.source_names.contains(&above);
                let above = if is_source { From::Source(above) } else { From::Table(above) };
                if table.aggregate.as_ref().is_some_and(|aggregate| aggregate.window.is_some()) {
                    return root(&above, names).map(|(source, _)| (source, true));
                }
                from = above;
            }
        }
    }
    None
}

fn micros(length: Duration) -> Micros {
    Micros::try_from(length.as_micros()).unwrap_or(Micros::MAX)
}
