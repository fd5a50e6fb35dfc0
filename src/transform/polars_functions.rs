//! Functions that Polars SQL lacks, or that it computes differently from what a SQL user expects.

use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};
use polars::prelude as pl;
use polars::prelude::{ChunkApply, IntoColumn, IntoSeries, PolarsError, PolarsResult, UserDefinedFunction};
use polars::sql::FunctionRegistry;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, ObjectName,
    ObjectNamePart, Value, ValueWithSpan,
};

/// To a UTC timestamp; text that is not one is an error.
pub const TIMESTAMP: &str = "tidegate_timestamp";
/// To a UTC timestamp; text that is not one becomes null.
pub const TRY_TIMESTAMP: &str = "tidegate_try_timestamp";
/// Integers to 64 bits: Polars sums an int column into an int, which wraps.
pub const WIDEN: &str = "tidegate_widen";

const DAY: i64 = 86_400_000_000;

/// What `date_trunc` cuts down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Whole seconds.
    Second,
    /// Whole minutes.
    Minute,
    /// Whole hours.
    Hour,
    /// Midnight.
    Day,
    /// Monday's midnight.
    Week,
    /// First of the month.
    Month,
    /// First of January, April, July or October.
    Quarter,
    /// First of January.
    Year,
}

const UNITS: [(Unit, &str, &str); 8] = [
    (Unit::Second, "second", "tidegate_trunc_second"),
    (Unit::Minute, "minute", "tidegate_trunc_minute"),
    (Unit::Hour, "hour", "tidegate_trunc_hour"),
    (Unit::Day, "day", "tidegate_trunc_day"),
    (Unit::Week, "week", "tidegate_trunc_week"),
    (Unit::Month, "month", "tidegate_trunc_month"),
    (Unit::Quarter, "quarter", "tidegate_trunc_quarter"),
    (Unit::Year, "year", "tidegate_trunc_year"),
];

impl Unit {
    /// The registered function's name.
    pub fn function(self) -> &'static str {
        UNITS.iter().find(|(unit, _, _)| *unit == self).map_or("", |(_, _, function)| function)
    }

    /// Truncates microseconds since the epoch.
    pub fn truncate(self, micros: i64) -> i64 {
        let first_of = |month: fn(u32) -> u32| {
            let date = DateTime::from_timestamp_micros(micros).map(|at| at.date_naive());
            date.and_then(|date| NaiveDate::from_ymd_opt(date.year(), month(date.month()), 1))
                .map_or(micros, |date| date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
        };
        match self {
            Unit::Second => micros - micros.rem_euclid(1_000_000),
            Unit::Minute => micros - micros.rem_euclid(60_000_000),
            Unit::Hour => micros - micros.rem_euclid(3_600_000_000),
            Unit::Day => micros - micros.rem_euclid(DAY),
            // The epoch was a Thursday.
            Unit::Week => micros - (micros + 3 * DAY).rem_euclid(7 * DAY),
            Unit::Month => first_of(|month| month),
            Unit::Quarter => first_of(|month| (month - 1) / 3 * 3 + 1),
            Unit::Year => first_of(|_| 1),
        }
    }
}

/// The unit of a `date_trunc('unit', time)` call; `None` = not such a call.
pub fn trunc_unit(function: &Function) -> Option<Unit> {
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(unit)), _] = list.args.as_slice() else {
        return None;
    };
    let text = match unit {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => text.to_lowercase(),
        _ => return None,
    };
    UNITS.iter().find(|(_, name, _)| *name == text || format!("{name}s") == text).map(|(unit, _, _)| *unit)
}

/// `name(argument)`.
pub fn call(name: &str, argument: Expr) -> Expr {
    Expr::Function(Function {
        name: ObjectName(vec![ObjectNamePart::Identifier(Ident::new(name))]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: vec![FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))],
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The functions above, for a Polars SQL context.
pub struct Functions;

impl FunctionRegistry for Functions {
    fn register(&mut self, name: &str, _: UserDefinedFunction) -> PolarsResult<()> {
        Err(PolarsError::ComputeError(format!("function {name} cannot be added").into()))
    }

    fn get_udf(&self, name: &str) -> PolarsResult<Option<UserDefinedFunction>> {
        let timestamp = |_: &pl::DataType| utc();
        Ok(match name {
            TIMESTAMP => Some(elementwise(name, |column| to_timestamp(column, true), timestamp)),
            TRY_TIMESTAMP => Some(elementwise(name, |column| to_timestamp(column, false), timestamp)),
            WIDEN => Some(elementwise(name, |column| column.cast(&widened(column.dtype())), widened)),
            _ => UNITS.iter().find(|(_, _, function)| *function == name).map(|(unit, _, _)| {
                let unit = *unit;
                elementwise(name, move |column| truncate(column, unit), timestamp)
            }),
        })
    }

    fn contains(&self, name: &str) -> bool {
        matches!(name, TIMESTAMP | TRY_TIMESTAMP | WIDEN) || UNITS.iter().any(|(_, _, function)| *function == name)
    }
}

fn elementwise(
    name: &str,
    compute: impl Fn(&pl::Column) -> PolarsResult<pl::Column> + Send + Sync + 'static,
    result: impl Fn(&pl::DataType) -> pl::DataType + Send + Sync + 'static,
) -> UserDefinedFunction {
    let one = |columns: usize| match columns {
        1 => Ok(()),
        more => Err(PolarsError::ComputeError(format!("expected one argument, found {more}").into())),
    };
    let run = move |columns: &mut [pl::Column]| {
        one(columns.len())?;
        compute(&columns[0])
    };
    let field = move |_: &pl::Schema, fields: &[pl::Field]| {
        one(fields.len())?;
        Ok(pl::Field::new(fields[0].name().clone(), result(fields[0].dtype())))
    };
    let mut function = UserDefinedFunction::new(name.into(), pl::BaseColumnUdf::new(run, field));
    function.options = polars::sql::FunctionOptions::elementwise();
    function
}

fn utc() -> pl::DataType {
    pl::DataType::Datetime(pl::TimeUnit::Microseconds, Some(pl::TimeZone::UTC))
}

fn widened(dtype: &pl::DataType) -> pl::DataType {
    match dtype {
        pl::DataType::Boolean => pl::DataType::Int64,
        dtype if dtype.is_integer() && !matches!(dtype, pl::DataType::Int128) => pl::DataType::Int64,
        dtype => dtype.clone(),
    }
}

fn to_timestamp(column: &pl::Column, strict: bool) -> PolarsResult<pl::Column> {
    use pl::DataType as D;
    let micros = match column.dtype() {
        D::String => {
            let text = column.str()?;
            let mut wrong = None;
            let parsed: pl::Int64Chunked = text.parse_micros_all(&mut wrong);
            if let Some(wrong) = wrong.filter(|_| strict) {
                let message = format!("`{wrong}` is not a timestamp; TRY_CAST gives null instead");
                return Err(PolarsError::ComputeError(message.into()));
            }
            return Ok(parsed
                .with_name(column.name().clone())
                .into_series()
                .cast(&naive())?
                .cast(&utc())?
                .into_column());
        }
        D::Datetime(_, Some(_)) => column.cast(&utc())?,
        D::Datetime(_, None) | D::Date | D::Null => column.cast(&naive())?.cast(&utc())?,
        D::Int32 | D::Int64 => column.cast(&D::Int64)?.cast(&naive())?.cast(&utc())?,
        other => {
            return Err(PolarsError::ComputeError(format!("a {other} cannot become a timestamp").into()));
        }
    };
    Ok(micros)
}

fn naive() -> pl::DataType {
    pl::DataType::Datetime(pl::TimeUnit::Microseconds, None)
}

trait ParseAll {
    fn parse_micros_all(&self, wrong: &mut Option<String>) -> pl::Int64Chunked;
}

impl ParseAll for pl::StringChunked {
    fn parse_micros_all(&self, wrong: &mut Option<String>) -> pl::Int64Chunked {
        self.iter()
            .map(|text| {
                let text = text?;
                let micros = parse_micros(text);
                if micros.is_none() && wrong.is_none() {
                    *wrong = Some(text.chars().take(40).collect());
                }
                micros
            })
            .collect()
    }
}

/// RFC 3339, or a date and time without a zone (UTC), or a date.
fn parse_micros(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.timestamp_micros());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
        if let Ok(at) = NaiveDateTime::parse_from_str(text, format) {
            return Some(at.and_utc().timestamp_micros());
        }
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f %#z"] {
        if let Ok(at) = DateTime::parse_from_str(text, format) {
            return Some(at.timestamp_micros());
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
}

fn truncate(column: &pl::Column, unit: Unit) -> PolarsResult<pl::Column> {
    let column = to_timestamp(column, true)?;
    let micros = column.as_materialized_series().datetime()?.physical().apply_values(|micros| unit.truncate(micros));
    let truncated = micros.with_name(column.name().clone()).into_series();
    Ok(truncated.cast(&naive())?.cast(&utc())?.into_column())
}

/// The functions as Polars wants them.
pub fn registry() -> Arc<dyn FunctionRegistry> {
    Arc::new(Functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        parse_micros(text).unwrap()
    }

    #[test]
    fn units_truncate_towards_the_past() {
        let cases = [
            (Unit::Second, "2026-03-18T13:14:15.678Z", "2026-03-18T13:14:15Z"),
            (Unit::Minute, "2026-03-18T13:14:15.678Z", "2026-03-18T13:14:00Z"),
            (Unit::Hour, "2026-03-18T13:14:15.678Z", "2026-03-18T13:00:00Z"),
            (Unit::Day, "2026-03-18T13:14:15.678Z", "2026-03-18"),
            (Unit::Week, "2026-03-18T13:14:15.678Z", "2026-03-16"),
            (Unit::Week, "2026-03-16", "2026-03-16"),
            (Unit::Week, "1969-12-31T23:00:00Z", "1969-12-29"),
            (Unit::Month, "2026-03-18T13:14:15.678Z", "2026-03-01"),
            (Unit::Quarter, "2026-03-18T13:14:15.678Z", "2026-01-01"),
            (Unit::Quarter, "2026-12-31", "2026-10-01"),
            (Unit::Year, "1960-03-18", "1960-01-01"),
            (Unit::Day, "1969-12-31T23:00:00Z", "1969-12-31"),
        ];
        for (unit, from, to) in cases {
            assert_eq!(unit.truncate(at(from)), at(to), "{unit:?} of {from}");
        }
    }

    #[test]
    fn timestamps_are_read_as_people_write_them() {
        let noon = at("2026-03-17T12:00:00Z");
        for text in ["2026-03-17 12:00:00", "2026-03-17T12:00:00.000", "2026-03-17T14:00:00+02:00", "2026-03-17 12:00"]
        {
            assert_eq!(parse_micros(text), Some(noon), "{text}");
        }
        assert_eq!(parse_micros("yesterday"), None);
    }
}
