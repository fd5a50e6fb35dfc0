//! Column types as people write them, and the Arrow types that Delta stores them as.

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use std::sync::Arc;

use super::report::closest;
use super::spec::EpochUnit;

/// Nested types may go this deep.
const MAX_DEPTH: usize = 16;

const NAMES: [&str; 14] = [
    "string",
    "binary",
    "boolean",
    "byte",
    "short",
    "int",
    "long",
    "float",
    "double",
    "date",
    "timestamp",
    "decimal",
    "array",
    "struct",
];

/// What other systems call our types.
const ALIASES: [(&str, &str); 31] = [
    ("int8", "byte"),
    ("tinyint", "byte"),
    ("int16", "short"),
    ("smallint", "short"),
    ("int32", "int"),
    ("i32", "int"),
    ("integer", "int"),
    ("int64", "long"),
    ("i64", "long"),
    ("bigint", "long"),
    ("uint32", "long"),
    ("uint64", "decimal(20,0)"),
    ("float32", "float"),
    ("real", "float"),
    ("float64", "double"),
    ("number", "double"),
    ("bool", "boolean"),
    ("text", "string"),
    ("str", "string"),
    ("utf8", "string"),
    ("varchar", "string"),
    ("char", "string"),
    ("uuid", "string"),
    ("json", "string"),
    ("bytes", "binary"),
    ("bytea", "binary"),
    ("datetime", "timestamp"),
    ("timestamptz", "timestamp"),
    ("numeric", "decimal"),
    ("map", "struct"),
    ("object", "struct"),
];

/// Why a text is not a type: the problem, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub label: String,
}

fn refuse<T>(message: impl Into<String>, label: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { message: message.into(), label: label.into() })
}

/// A type and whether it may be null.
#[derive(Debug, Clone, PartialEq)]
pub struct Type {
    /// As stored.
    pub data_type: DataType,
    /// `not null` was not said.
    pub nullable: bool,
    /// How numbers become timestamps.
    pub unit: Option<EpochUnit>,
}

impl Type {
    fn nullable(data_type: DataType) -> Self {
        Type { data_type, nullable: true, unit: None }
    }

    /// A list of this.
    pub fn into_list(self) -> Type {
        Type::nullable(DataType::List(Arc::new(Field::new("element", self.data_type, self.nullable))))
    }

    /// A struct of these.
    pub fn of_struct(fields: Vec<(String, Type)>) -> Type {
        let field = |(name, t): (String, Type)| Field::new(name, t.data_type, t.nullable);
        Type::nullable(DataType::Struct(fields.into_iter().map(field).collect::<Fields>()))
    }
}

/// `decimal(18,2) not null`, `array<struct<a: int>>`, …
pub fn parse(text: &str) -> Result<Type, Refusal> {
    let mut reader = Reader { rest: text };
    let parsed = reader.full_type(0)?;
    match reader.rest.trim() {
        "" => Ok(parsed),
        more => refuse(format!("`{text}` is not a type"), format!("`{more}` is too much")),
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn word(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn take(&mut self, symbol: char) -> bool {
        let trimmed = self.rest.trim_start();
        match trimmed.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn need(&mut self, symbol: char, example: &str) -> Result<(), Refusal> {
        match self.take(symbol) {
            true => Ok(()),
            false => refuse(format!("`{symbol}` is missing in the type"), format!("write it like {example}")),
        }
    }

    fn full_type(&mut self, depth: usize) -> Result<Type, Refusal> {
        let mut parsed = self.bare_type(depth)?;
        let before = self.rest;
        if self.word().eq_ignore_ascii_case("not") {
            match self.word().eq_ignore_ascii_case("null") {
                true => parsed.nullable = false,
                false => return refuse("`not` without `null`", "write `not null`"),
            }
        } else {
            self.rest = before;
        }
        Ok(parsed)
    }

    fn bare_type(&mut self, depth: usize) -> Result<Type, Refusal> {
        if depth > MAX_DEPTH {
            return refuse(format!("a type nested more than {MAX_DEPTH} levels deep"), "");
        }
        let name = self.word();
        let simple = |data_type| Ok(Type::nullable(data_type));
        match name.to_ascii_lowercase().as_str() {
            "string" => simple(DataType::Utf8),
            "binary" => simple(DataType::Binary),
            "boolean" => simple(DataType::Boolean),
            "byte" => simple(DataType::Int8),
            "short" => simple(DataType::Int16),
            "int" => simple(DataType::Int32),
            "long" => simple(DataType::Int64),
            "float" => simple(DataType::Float32),
            "double" => simple(DataType::Float64),
            "date" => simple(DataType::Date32),
            "timestamp" => simple(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            "decimal" => self.decimal(),
            "array" | "list" => {
                self.need('<', "array<string>")?;
                let element = self.full_type(depth + 1)?;
                self.need('>', "array<string>")?;
                Ok(element.into_list())
            }
            "struct" => self.fields(depth),
            other => {
                let alias = ALIASES.iter().find(|(alias, _)| *alias == other).map(|(_, name)| *name);
                match alias.or_else(|| closest(other, NAMES)) {
                    Some(near) => refuse(format!("unknown type `{name}`"), format!("did you mean `{near}`?")),
                    None if name.is_empty() => refuse("a type is missing", "write it like `string` or `decimal(18,2)`"),
                    None => refuse(format!("unknown type `{name}`"), format!("types: {}", NAMES.join(", "))),
                }
            }
        }
    }

    fn decimal(&mut self) -> Result<Type, Refusal> {
        const EXAMPLE: &str = "decimal(18,2)";
        if !self.take('(') {
            return refuse("`decimal` needs precision and scale", format!("write it like {EXAMPLE}"));
        }
        let precision = self.word();
        let scale = if self.take(',') { self.word() } else { "0" };
        self.need(')', EXAMPLE)?;
        match (precision.parse::<u8>(), scale.parse::<i8>()) {
            (Ok(precision), _) if precision > 38 => {
                refuse(format!("`decimal({precision},{scale})` is too precise"), "precision is at most 38")
            }
            (Ok(precision), Ok(scale)) if precision > 0 && scale >= 0 && scale as u8 <= precision => {
                Ok(Type::nullable(DataType::Decimal128(precision, scale)))
            }
            (Ok(_), Ok(_)) => refuse(
                format!("`decimal({precision},{scale})` cannot be"),
                "precision is 1 to 38, scale 0 to precision",
            ),
            _ => refuse("`decimal` needs precision and scale", format!("write it like {EXAMPLE}")),
        }
    }

    fn fields(&mut self, depth: usize) -> Result<Type, Refusal> {
        const EXAMPLE: &str = "struct<a: string, b: int not null>";
        self.need('<', EXAMPLE)?;
        let mut fields: Vec<(String, Type)> = Vec::new();
        loop {
            let name = self.word().to_owned();
            if name.is_empty() {
                return refuse("a field name is missing in the struct", format!("write it like {EXAMPLE}"));
            }
            if fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(&name)) {
                return refuse(format!("the struct has the field `{name}` twice"), "");
            }
            self.need(':', EXAMPLE)?;
            fields.push((name, self.full_type(depth + 1)?));
            if !self.take(',') {
                self.need('>', EXAMPLE)?;
                return Ok(Type::of_struct(fields));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_nest() {
        let parsed = parse("struct<a: array<long not null>, b: decimal(18,2) not null> NOT NULL").expect("a type");
        assert!(!parsed.nullable);
        let DataType::Struct(fields) = parsed.data_type else { panic!("a struct") };
        assert_eq!(fields[1], Arc::new(Field::new("b", DataType::Decimal128(18, 2), false)));
        let element = Field::new("element", DataType::Int64, false);
        assert_eq!(fields[0].data_type(), &DataType::List(Arc::new(element)));
    }

    #[test]
    fn refusals_say_what_to_write() {
        for (text, words) in [
            ("int64", "did you mean `long`?"),
            ("VARCHAR", "did you mean `string`?"),
            ("strng", "did you mean `string`?"),
            ("decimal(40,2)", "at most 38"),
            ("decimal", "decimal(18,2)"),
            ("decimal(2,3)", "scale 0 to precision"),
            ("array<int", "array<string>"),
            ("struct<a int>", "struct<a: string"),
            ("struct<a: int, A: int>", ""),
            ("string null", "`null` is too much"),
            ("int not", "not null"),
            ("", "decimal(18,2)"),
            ("färbe", "types: string"),
        ] {
            let refusal = parse(text).expect_err(text);
            assert!(refusal.label.contains(words), "{text}: {refusal:?}");
        }
        assert!(parse(&"array<".repeat(9999)).is_err());
    }
}
