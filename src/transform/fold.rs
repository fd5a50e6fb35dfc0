//! Counts and sums kept by what changed: stored − gone + came, group by group, in whole numbers. A group whose outcome cannot
//! be known this way is named, never guessed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, PrimitiveArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Field, Int8Type, Int16Type, Int32Type, Int64Type, Schema, SchemaRef,
};
use arrow::row::{RowConverter, Rows, SortField};

use super::tally::{Sum, Tally};
use super::{BatchContext, Inputs, Transform};
use crate::arrow_bridge::conform;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::table::Images;

/// Rows told apart by some of their columns; null is a value like any other.
pub struct Keys {
    schema: SchemaRef,
    converter: RowConverter,
    keys: HashSet<Box<[u8]>>,
}

impl Keys {
    /// No rows yet; they are told apart by the columns `names` with their types in `schema`.
    pub fn new(schema: &Schema, names: &[String]) -> Result<Keys> {
        let field = |name: &String| schema.field_with_name(name).cloned();
        let fields: Vec<Field> =
            names.iter().map(field).collect::<Result<_, _>>().context(ErrorKind::Failed, "a column is missing")?;
        let sort = fields.iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(sort).context(ErrorKind::Failed, "these columns cannot be compared")?;
        Ok(Keys { schema: Arc::new(Schema::new(fields)), converter, keys: HashSet::new() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds those of `rows`.
    pub fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        let encoded = self.encode(rows)?;
        self.keys.extend(encoded.iter().map(|row| Box::from(row.as_ref())));
        Ok(())
    }

    /// Which of `rows` are among them.
    pub fn mask(&self, rows: &RecordBatch) -> Result<BooleanArray> {
        let encoded = self.encode(rows)?;
        Ok(encoded.iter().map(|row| Some(self.keys.contains(row.as_ref()))).collect())
    }

    /// Those of `rows` that are among them, and the others.
    pub fn part(&self, rows: &RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
        let known = self.mask(rows)?;
        let others = arrow::compute::not(&known).context(ErrorKind::Failed, "rows could not be filtered")?;
        let filter = |mask| filter_record_batch(rows, mask).context(ErrorKind::Failed, "rows could not be filtered");
        Ok((filter(&known)?, filter(&others)?))
    }

    fn encode(&self, rows: &RecordBatch) -> Result<Rows> {
        let column = |field: &Arc<Field>| {
            let column = rows.column_by_name(field.name()).filter(|column| column.data_type() == field.data_type());
            column.cloned().ok_or_else(|| Error::failed(format!("the rows have no column `{}`", field.name())))
        };
        let columns = self.schema.fields().iter().map(column).collect::<Result<Vec<_>>>()?;
        self.converter.convert_columns(&columns).context(ErrorKind::Failed, "rows could not be encoded")
    }
}

/// What [`fold`] found.
pub struct Folded {
    /// The rows of every group that is not in `unsure`.
    pub rows: RecordBatch,
    /// Groups that have to be computed from all of their rows.
    pub unsure: Keys,
}

/// The rows of groups after a batch: those that are stored, less what the query makes of the rows that are gone, plus what
/// it makes of the rows that came. All have the columns of `schema`; groups are told apart by `by`.
pub fn fold(
    tally: &Tally,
    schema: &SchemaRef,
    by: &[String],
    stored: &[RecordBatch],
    gone: &[RecordBatch],
    came: &[RecordBatch],
) -> Result<Folded> {
    let all =
        |rows: &[RecordBatch]| concat_batches(schema, rows).context(ErrorKind::Failed, "rows could not be joined");
    let sides = [all(stored)?, all(gone)?, all(came)?];
    let rows = concat_batches(schema, &sides).context(ErrorKind::Failed, "rows could not be joined")?;
    let entries = entries(&Keys::new(schema, &tally.identity)?.encode(&rows)?, &sides);
    let ledger = Ledger::read(tally, &rows)?;

    let mut kept: Vec<u32> = Vec::new();
    let mut totals: Vec<Vec<Option<i128>>> = vec![Vec::new(); ledger.columns.len()];
    let mut doubtful: Vec<u32> = Vec::new();
    for entry in &entries {
        match ledger.outcome(entry) {
            Outcome::Row(values) => {
                kept.push(entry.first);
                totals.iter_mut().zip(values).for_each(|(total, value)| total.push(value));
            }
            Outcome::Gone => {}
            Outcome::Unsure => doubtful.push(entry.first),
        }
    }
    let mut unsure = Keys::new(schema, by)?;
    unsure.add(&pick(&rows, doubtful)?)?;
    let mut columns = pick(&rows, kept)?.columns().to_vec();
    for (column, total) in ledger.columns.iter().zip(totals) {
        columns[column.at] = array(total, schema.field(column.at).data_type())?;
    }
    let folded = RecordBatch::try_new(schema.clone(), columns).context(ErrorKind::Failed, "folding counts and sums")?;
    let (_, rows) = unsure.part(&folded)?;
    Ok(Folded { rows, unsure })
}

/// A batch's change to a refresh table that follows what changed upstream.
pub struct Following<'a> {
    /// The refresh table.
    pub table: &'a str,
    /// The table that it follows.
    pub upstream: &'a str,
    /// What names its groups.
    pub by: &'a [String],
    /// The groups asked for; the columns are `by`.
    pub groups: &'a RecordBatch,
    /// The rows that the table has of these groups.
    pub stored: &'a [RecordBatch],
    /// What the batch did upstream, in whatever group.
    pub images: Images,
}

/// The rows of the groups after the batch. The table's own SQL says what the rows that went, and those that came, amount to.
pub fn follow(transform: &dyn Transform, following: Following<'_>, context: &BatchContext) -> Result<Folded> {
    let Following { table, upstream, by, groups, stored, images } = following;
    let Some(tally) = transform.tally(table) else {
        return Err(Error::failed(format!("{table} does not follow what changes")));
    };
    let schema = transform.schema(table);
    let mut asked = Keys::new(&groups.schema(), by)?;
    asked.add(groups)?;
    let amounts = |rows: Vec<RecordBatch>| -> Result<Vec<RecordBatch>> {
        if rows.iter().all(|rows| rows.num_rows() == 0) {
            return Ok(Vec::new());
        }
        let tables = HashMap::from([(upstream.to_string(), Arc::new(rows))]);
        let inputs = Inputs { tables, ..Inputs::default() };
        let rows = conform(&transform.shape(table, &inputs, context)?.rows, &schema)?;
        rows.iter().map(|rows| Ok(asked.part(rows)?.0)).collect()
    };
    let (gone, came) = (amounts(images.gone)?, amounts(images.came)?);
    fold(tally, &schema, by, &conform(stored, &schema)?, &gone, &came)
}

/// Where the three parts of one row of the table are.
#[derive(Debug)]
struct Entry {
    first: u32,
    /// Stored, gone, came.
    sides: [Option<u32>; 3],
    /// Two rows of one side have the same identity: then it is none.
    is_double: bool,
}

fn entries(identities: &Rows, sides: &[RecordBatch; 3]) -> Vec<Entry> {
    let mut places: HashMap<&[u8], usize> = HashMap::new();
    let mut entries: Vec<Entry> = Vec::new();
    let side_of = sides.iter().enumerate().flat_map(|(side, rows)| std::iter::repeat_n(side, rows.num_rows()));
    // The bytes of a row live as long as the rows.
    for (row, side) in (0..identities.num_rows()).zip(side_of) {
        let place = *places.entry(identities.row(row).data()).or_insert_with(|| {
            entries.push(Entry { first: row as u32, sides: [None; 3], is_double: false });
            entries.len() - 1
        });
        let entry = &mut entries[place];
        entry.is_double |= entry.sides[side].replace(row as u32).is_some();
    }
    entries
}

enum Outcome {
    /// Values by column of the ledger.
    Row(Vec<Option<i128>>),
    Gone,
    Unsure,
}

struct Column {
    at: usize,
    values: Vec<Option<i128>>,
    /// What fits into it.
    range: (i128, i128),
}

/// The columns that are added up: `count(*)`, then counts, then sums.
struct Ledger<'a> {
    columns: Vec<Column>,
    sums: &'a [Sum],
    /// For each sum, the column that says whether there is anything to sum up.
    counters: Vec<Option<usize>>,
}

impl<'a> Ledger<'a> {
    fn read(tally: &'a Tally, rows: &RecordBatch) -> Result<Ledger<'a>> {
        let counts: Vec<&String> = std::iter::once(&tally.rows).chain(&tally.counts).collect();
        let names = counts.iter().copied().chain(tally.sums.iter().map(|sum| &sum.column));
        let columns = names.map(|name| Column::read(rows, name)).collect::<Result<_>>()?;
        let counter = |sum: &Sum| {
            let counted_by = sum.counted_by.as_ref()?;
            counts.iter().position(|count| *count == counted_by)
        };
        Ok(Ledger { columns, sums: &tally.sums, counters: tally.sums.iter().map(counter).collect() })
    }

    /// Whether a sum is null exactly where its counter says that there is nothing to sum up: somebody may have put nulls into
    /// a column that should have none.
    fn agree(&self, entry: &Entry, number: usize, sum: usize) -> bool {
        let Some(counter) = self.counters[sum] else { return true };
        let agrees = |row: &u32| {
            let (sum, count) =
                (self.columns[number].values[*row as usize], self.columns[counter].values[*row as usize]);
            sum.is_some() == count.is_some_and(|count| count > 0)
        };
        entry.sides.iter().flatten().all(agrees)
    }

    fn outcome(&self, entry: &Entry) -> Outcome {
        if entry.is_double {
            return Outcome::Unsure;
        }
        let mut values = Vec::with_capacity(self.columns.len());
        let counted = self.columns.len() - self.sums.len();
        for (number, column) in self.columns.iter().enumerate() {
            let of = |side: usize| entry.sides[side].map(|row| column.values[row as usize]);
            let sides = [of(0), of(1), of(2)];
            let value = match number.checked_sub(counted) {
                None => count(sides),
                Some(sum) if !self.agree(entry, number, sum) => None,
                Some(sum) => {
                    let any = self.counters[sum].map(|counter| values[counter] != Some(0));
                    total(sides.map(Option::flatten), any)
                }
            };
            match value {
                Some(value) if value.is_none_or(|value| column.range.0 <= value && value <= column.range.1) => {
                    values.push(value);
                }
                _ => return Outcome::Unsure,
            }
        }
        match values[0] {
            Some(0) if values[1..counted].iter().all(|count| *count == Some(0)) => Outcome::Gone,
            Some(0) => Outcome::Unsure,
            _ => Outcome::Row(values),
        }
    }
}

/// A count after the batch; `None` = it cannot be that.
fn count(sides: [Option<Option<i128>>; 3]) -> Option<Option<i128>> {
    // A side without the row counts nothing; a row without a count is none that the query has made.
    let [stored, gone, came] = sides.map(|side| side.unwrap_or(Some(0)));
    let count = stored?.checked_sub(gone?)?.checked_add(came?)?;
    (count >= 0).then_some(Some(count))
}

/// A sum after the batch: null where nothing was summed up. `any` = whether there is something to sum up, where that is
/// known. `None` = it cannot be said.
fn total([stored, gone, came]: [Option<i128>; 3], any: Option<bool>) -> Option<Option<i128>> {
    let sum = || stored.unwrap_or(0).checked_sub(gone.unwrap_or(0))?.checked_add(came.unwrap_or(0)).map(Some);
    match (any, stored, gone, came) {
        (Some(false), ..) => Some(None),
        (Some(true), ..) => sum(),
        // What was summed up before may all be gone.
        (None, Some(_), Some(_), None) => None,
        // More went than there was.
        (None, None, Some(_), _) => None,
        (None, None, None, None) => Some(None),
        (None, ..) => sum(),
    }
}

impl Column {
    fn read(rows: &RecordBatch, name: &str) -> Result<Column> {
        let at = rows.schema().index_of(name).context(ErrorKind::Failed, "a column is missing")?;
        let column = rows.column(at);
        let signed = |bits: u32| (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1);
        let (values, range) = match column.data_type() {
            DataType::Int8 => (values::<Int8Type>(column), signed(8)),
            DataType::Int16 => (values::<Int16Type>(column), signed(16)),
            DataType::Int32 => (values::<Int32Type>(column), signed(32)),
            DataType::Int64 => (values::<Int64Type>(column), signed(64)),
            DataType::Decimal128(precision, _) => {
                let most = 10_i128.pow(u32::from(*precision)) - 1;
                (values::<Decimal128Type>(column), (-most, most))
            }
            other => return Err(Error::failed(format!("column `{name}` is {other}, which is not added up"))),
        };
        Ok(Column { at, values, range })
    }
}

fn values<T: ArrowPrimitiveType>(column: &ArrayRef) -> Vec<Option<i128>>
where
    T::Native: Into<i128>,
{
    column.as_primitive::<T>().iter().map(|value| value.map(Into::into)).collect()
}

fn array(values: Vec<Option<i128>>, data_type: &DataType) -> Result<ArrayRef> {
    fn whole<T: ArrowPrimitiveType>(values: Vec<Option<i128>>) -> ArrayRef
    where
        T::Native: TryFrom<i128>,
    {
        let narrow = |value: Option<i128>| value.and_then(|value| T::Native::try_from(value).ok());
        Arc::new(values.into_iter().map(narrow).collect::<PrimitiveArray<T>>())
    }
    Ok(match data_type {
        DataType::Int8 => whole::<Int8Type>(values),
        DataType::Int16 => whole::<Int16Type>(values),
        DataType::Int32 => whole::<Int32Type>(values),
        DataType::Int64 => whole::<Int64Type>(values),
        _ => {
            let decimals = values.into_iter().collect::<Decimal128Array>();
            Arc::new(decimals.with_data_type(data_type.clone()))
        }
    })
}

fn pick(rows: &RecordBatch, numbers: Vec<u32>) -> Result<RecordBatch> {
    let numbers = UInt32Array::from(numbers);
    let column = |column: &ArrayRef| take(column, &numbers, None);
    let columns: Vec<ArrayRef> =
        rows.columns().iter().map(column).collect::<Result<_, _>>().context(ErrorKind::Failed, "picking rows")?;
    RecordBatch::try_new(rows.schema(), columns).context(ErrorKind::Failed, "picking rows")
}
