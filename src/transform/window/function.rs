//! The aggregate functions: what they are called, and which types they take and give.

use arrow::datatypes::{DataType, Field};

use crate::transform::types::stored_type;

/// Digits of the widest decimal.
const MOST_DIGITS: u8 = 38;

/// Which aggregate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `count(*)`.
    CountAll,
    /// `count(x)`: values that are not null.
    Count,
    /// `count(distinct x)`, exact.
    CountDistinct,
    /// `approx_count_distinct(x)`: within a few per cent, in a few kilobytes.
    ApproxCountDistinct,
    /// `sum(x)`: exact for integers and decimals.
    Sum,
    /// `avg(x)`.
    Avg,
    /// `min(x)`.
    Min,
    /// `max(x)`.
    Max,
    /// `first(x)`: the value of the earliest event; of several, the one that arrived first.
    First,
    /// `last(x)`: the value of the latest event; of several, the one that arrived last.
    Last,
    /// `approx_quantile(x, q)`: within one per cent of the value with that rank.
    ApproxQuantile(f64),
}

/// What aggregates are called, the usual name first.
pub const NAMES: &[(&str, &[&str])] = &[
    ("count", &[]),
    ("sum", &[]),
    ("avg", &["mean"]),
    ("min", &[]),
    ("max", &[]),
    ("first", &["first_value"]),
    ("last", &["last_value"]),
    ("approx_count_distinct", &["approx_distinct"]),
    ("approx_quantile", &["approx_percentile", "percentile_approx"]),
];

impl Kind {
    /// The usual name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::CountAll | Kind::Count | Kind::CountDistinct => "count",
            Kind::ApproxCountDistinct => "approx_count_distinct",
            Kind::Sum => "sum",
            Kind::Avg => "avg",
            Kind::Min => "min",
            Kind::Max => "max",
            Kind::First => "first",
            Kind::Last => "last",
            Kind::ApproxQuantile(_) => "approx_quantile",
        }
    }

    /// The type of its result over an argument of a stored type ([`crate::transform::types::stored_type`]), or why there
    /// is none. As in Spark: `sum` of decimals has 38 digits, `avg` of decimals four more on each side of the point, as
    /// far as they fit.
    pub fn result(self, argument: Option<&DataType>) -> Result<DataType, String> {
        let Some(argument) = argument else { return Ok(DataType::Int64) };
        let misfit = |wants: &str| Err(format!("`{}` wants {wants}; its argument is {argument}", self.name()));
        match (self, argument) {
            (Kind::CountAll | Kind::Count, _) => Ok(DataType::Int64),
            (_, DataType::List(_) | DataType::Struct(_) | DataType::Map(_, _)) => misfit("a plain value"),
            (_, other) if stored_type(other).as_ref() != Ok(other) => misfit("a value that a table can store"),
            (Kind::CountDistinct | Kind::ApproxCountDistinct, _) => Ok(DataType::Int64),
            (Kind::Sum, integer) if integer.is_signed_integer() => Ok(DataType::Int64),
            (Kind::Sum, DataType::Decimal128(_, scale)) => Ok(DataType::Decimal128(MOST_DIGITS, *scale)),
            (Kind::Sum, DataType::Float32 | DataType::Float64) => Ok(DataType::Float64),
            (Kind::Avg, DataType::Decimal128(precision, scale)) => {
                let scale = scale.saturating_add(4).min(MOST_DIGITS as i8);
                Ok(DataType::Decimal128(precision.saturating_add(4).min(MOST_DIGITS), scale))
            }
            (Kind::Avg, number) if number.is_numeric() => Ok(DataType::Float64),
            (Kind::ApproxQuantile(_), number) if number.is_numeric() => Ok(DataType::Float64),
            (Kind::Sum | Kind::Avg | Kind::ApproxQuantile(_), _) => misfit("a number"),
            (Kind::Min | Kind::Max, DataType::Binary) => misfit("a value that has an order people know"),
            (Kind::Min | Kind::Max | Kind::First | Kind::Last, _) => Ok(argument.clone()),
        }
    }
}

/// One function of an aggregation.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Which.
    pub kind: Kind,
    /// Its argument: `_argN` with this N; `None` for `count(*)`.
    pub argument: Option<usize>,
    /// The argument's stored type.
    pub argument_type: Option<DataType>,
    /// The first measure that needs it, for errors.
    pub measure: String,
}

impl Function {
    /// The column of its result in the output: `_aggN`.
    pub fn output(&self, number: usize) -> Result<Field, String> {
        Ok(Field::new(result_column(number), self.kind.result(self.argument_type.as_ref())?, true))
    }
}

/// `_argN`.
pub fn argument_column(number: usize) -> String {
    format!("_arg{number}")
}

/// `_aggN`.
pub fn result_column(number: usize) -> String {
    format!("_agg{number}")
}
