//! Which dead letters a command is about.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeZone, Utc};

use super::super::output::quoted;
use crate::cli::LetterArgs;
use crate::config::spec::{Engine, PipelineSpec};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::model::letter::Status;
use crate::table::Table;
use crate::transform::engine::{self, Job, NamedRows};
use crate::transform::letter::{self, HEAVY, Letter};
use crate::transform::problems;

/// Number of a row among those that the SQL of `--where` sees.
const ROW: &str = "_tidegate_row";

/// What the rows are called there.
const LETTERS: &str = "letters";

/// The arguments, understood.
pub(super) struct Selection<'a> {
    args: &'a LetterArgs,
    statuses: Vec<Status>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
    /// Tables and sources of the file.
    known: Vec<String>,
}

impl<'a> Selection<'a> {
    /// Letters of `usual` statuses, unless the arguments name others.
    pub(super) fn new(args: &'a LetterArgs, usual: &[Status], spec: &PipelineSpec) -> Result<Selection<'a>> {
        let timezone = spec.timezone;
        let status = |word: &String| {
            Status::read(Some(word)).ok_or_else(|| {
                Error::new(ErrorKind::Usage, format!("--status `{word}` is not a status"))
                    .help("write open, replayed or discarded")
            })
        };
        let statuses = args.statuses.iter().map(status).collect::<Result<Vec<_>>>()?;
        let time = |name: &str, text: &Option<String>| match text {
            Some(text) => parse_time(name, text, timezone).map(Some),
            None => Ok(None),
        };
        Ok(Selection {
            args,
            statuses: if statuses.is_empty() { usual.to_vec() } else { statuses },
            since: time("since", &args.since)?,
            until: time("until", &args.until)?,
            known: spec.sources.keys().cloned().chain(spec.tables.iter().map(|table| table.name.clone())).collect(),
        })
    }

    /// Refuses `--table` names that neither the file knows nor a letter: of a table that was taken out of the file there may
    /// still be some.
    pub(super) fn check_tables(&self, letters: &[Letter]) -> Result<()> {
        let is_known =
            |name: &&String| self.known.contains(name) || letters.iter().any(|letter| letter.table == **name);
        match self.args.tables.iter().find(|name| !is_known(name)) {
            None => Ok(()),
            Some(name) => {
                let known = self.known.iter().map(String::as_str);
                let help = problems::suggest(name, known, "tables and sources").unwrap_or_default();
                let text = format!("--table: the pipeline has no table or source `{name}`, and no dead letter of one");
                Err(Error::new(ErrorKind::Usage, text).help(help))
            }
        }
    }

    /// The letters, oldest first; all of them where the limit counts something else.
    pub(super) async fn letters(&self, table: &mut dyn Table, limit: Option<usize>) -> Result<Vec<Letter>> {
        let mut columns = letter::light_columns();
        if let Some(condition) = &self.args.condition {
            let wanted = HEAVY.iter().filter(|name| **name != "headers" && condition.contains(*name));
            columns.extend(wanted.map(|name| name.to_string()));
        }
        let rows = table.read(&columns, None).await?;
        let kept = self.condition(&rows, table, &columns)?;
        let letters = letter::read(&rows)?;
        self.check_tables(&letters)?;
        let letters = letters.into_iter().zip(kept);
        let mut letters: Vec<Letter> =
            letters.filter(|(letter, kept)| *kept && self.has(letter)).map(|(letter, _)| letter).collect();
        letters.sort_by(|a, b| {
            (a.failed_at, a.batch, &a.coordinates, &a.id).cmp(&(b.failed_at, b.batch, &b.coordinates, &b.id))
        });
        letters.truncate(limit.unwrap_or(usize::MAX));
        Ok(letters)
    }

    fn has(&self, letter: &Letter) -> bool {
        let among = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        let args = self.args;
        among(&args.tables, &letter.table)
            && among(&args.stages, &letter.stage)
            && among(&args.rules, &letter.rule)
            && (args.batches.is_empty() || args.batches.contains(&letter.batch))
            && (args.ids.is_empty() || args.ids.iter().any(|id| letter.id.starts_with(id.as_str())))
            && self.statuses.contains(&letter.status)
            && self.since.is_none_or(|since| letter.failed_at >= since)
            && self.until.is_none_or(|until| letter.failed_at < until)
    }

    /// For which rows the SQL of `--where` is true.
    fn condition(&self, rows: &[RecordBatch], table: &dyn Table, columns: &[String]) -> Result<Vec<bool>> {
        let count = rows.iter().map(RecordBatch::num_rows).sum();
        let Some(condition) = &self.args.condition else { return Ok(vec![true; count]) };
        let known = &table.definition().schema;
        let mut fields: Vec<Field> = columns
            .iter()
            .filter_map(|name| known.field_with_name(name).ok().cloned())
            .map(|field| field.with_nullable(true))
            .collect();
        fields.push(Field::new(ROW, DataType::Int64, false));
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let query = format!("SELECT {ROW} FROM {LETTERS} WHERE ({condition}\n)");
        let wrong = |why: String| {
            let names: Vec<String> = letter::columns().into_iter().filter(|name| name != "headers").collect();
            Error::new(ErrorKind::Usage, format!("--where: {}", why.lines().next().unwrap_or_default()))
                .help(format!("it is SQL over the columns {}", names.join(", ")))
                .help("names that are words of SQL stand in double quotes: \"table\", \"offset\", \"partition\"")
        };
        engine::infer(Engine::Polars, &[(LETTERS.to_string(), schema.clone())], &query).map_err(wrong)?;
        let mut first = 0;
        let rows = rows.iter().map(|batch| {
            let numbered = numbered(batch, &schema, first);
            first += batch.num_rows() as i64;
            numbered
        });
        let input = NamedRows { name: LETTERS.into(), schema: schema.clone(), rows: rows.collect::<Result<_>>()? };
        let computed = Arc::new(Schema::new(vec![Field::new(ROW, DataType::Int64, true)]));
        let job = Job { inputs: vec![input], query: &query, computed: &computed, checks: None };
        let found = engine::run(Engine::Polars, job).map_err(|error| wrong(error.to_string()))?;
        let mut kept = vec![false; count];
        for batch in &found {
            for row in batch.column(0).as_primitive::<Int64Type>().iter().flatten() {
                if let Some(kept) = kept.get_mut(row as usize) {
                    *kept = true;
                }
            }
        }
        Ok(kept)
    }

    /// The arguments as they are typed.
    pub(super) fn typed(&self) -> String {
        let args = self.args;
        let batches: Vec<String> = args.batches.iter().map(i64::to_string).collect();
        let lists = [
            ("table", &args.tables),
            ("stage", &args.stages),
            ("rule", &args.rules),
            ("batch", &batches),
            ("id", &args.ids),
            ("status", &args.statuses),
        ];
        let mut typed = String::new();
        for (name, values) in lists.iter().filter(|(_, values)| !values.is_empty()) {
            typed.push_str(&format!(" --{name} {}", quoted(&values.join(","))));
        }
        let texts = [("since", &args.since), ("until", &args.until), ("where", &args.condition)];
        for (name, text) in texts {
            if let Some(text) = text {
                typed.push_str(&format!(" --{name} {}", quoted(text)));
            }
        }
        if let Some(limit) = args.limit {
            typed.push_str(&format!(" --limit {limit}"));
        }
        typed
    }

    /// The statuses that it is about.
    pub(super) fn statuses(&self) -> &[Status] {
        &self.statuses
    }
}

/// The rows with their number; letters from before there was a status are open.
fn numbered(batch: &RecordBatch, schema: &SchemaRef, first: i64) -> Result<RecordBatch> {
    let count = batch.num_rows();
    let column = |field: &Arc<Field>| -> Result<ArrayRef> {
        if field.name() == ROW {
            return Ok(Arc::new((first..).take(count).collect::<Int64Array>()));
        }
        let column = batch.column_by_name(field.name());
        let column =
            column.ok_or_else(|| Error::failed(format!("the dead letters have no column {}", field.name())))?;
        let odd = || Error::failed(format!("the column {} of the dead letters has another type", field.name()));
        Ok(match field.name().as_str() {
            "status" => {
                let words = column.as_string_opt::<i32>().ok_or_else(odd)?;
                let open = Status::Open.as_str();
                Arc::new(words.iter().map(|word| Some(word.unwrap_or(open))).collect::<StringArray>())
            }
            "attempts" => {
                let attempts = column.as_primitive_opt::<Int32Type>().ok_or_else(odd)?;
                Arc::new(attempts.iter().map(|attempts| Some(attempts.unwrap_or(0))).collect::<Int32Array>())
            }
            _ => column.clone(),
        })
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(schema.clone(), columns).context(ErrorKind::Failed, "dead letters do not fit their columns")
}

/// A time, or a day that begins in the pipeline's timezone.
fn parse_time(name: &str, text: &str, timezone: chrono_tz::Tz) -> Result<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let begins = day.and_then(|day| timezone.from_local_datetime(&day.and_time(NaiveTime::MIN)).earliest());
    begins.map(|time| time.to_utc()).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("--{name} `{text}` is not a time"))
            .help("write a time such as 2026-03-17T12:00:00Z, or a date such as 2026-03-17")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_begins_in_the_timezone_of_the_pipeline() {
        let time = |text: &str| parse_time("since", text, chrono_tz::Europe::Berlin).map(|time| time.to_rfc3339());
        assert_eq!(time("2026-03-17").expect("a date"), "2026-03-16T23:00:00+00:00");
        assert_eq!(time("2026-03-17T12:00:00+02:00").expect("a time"), "2026-03-17T10:00:00+00:00");
        assert_eq!(time("yesterday").expect_err("refused").kind(), ErrorKind::Usage);
    }

    #[test]
    fn a_selection_is_typed_as_it_was_given() {
        let args = LetterArgs {
            tables: vec!["silver.orders".into()],
            stages: vec!["expect".into(), "key".into()],
            batches: vec![3],
            condition: Some("\"offset\" > 5".into()),
            limit: Some(7),
            ..LetterArgs::default()
        };
        let statuses = Status::ALL.to_vec();
        let selection = Selection { args: &args, statuses, since: None, until: None, known: Vec::new() };
        assert_eq!(
            selection.typed(),
            " --table silver.orders --stage expect,key --batch 3 --where '\"offset\" > 5' --limit 7"
        );
    }
}
