//! `approx_quantile(x, q)`: DDSketch (Masson, Rim, Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch with
//! relative-error guarantees"). Values are counted in buckets whose borders grow by γ = (1 + α) / (1 - α); the middle of the
//! bucket that holds the wanted rank is within α = 1 % of the value there. Counts are added when sketches are, so neither the
//! order of rows nor the way they are cut into batches changes the result.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array};
use arrow::datatypes::DataType;

use super::misfit;
use super::sketch::{Sketch, binary};
use super::value::Reader;
use crate::error::Result;

/// How far a result may be from the value, relative to it.
pub(super) const ACCURACY: f64 = 0.01;
/// Nearer to zero than this is zero.
const SMALLEST: f64 = 1e-9;
/// First byte of what is saved.
const SAVED: u8 = 1;
/// What a node of a map costs for an entry, roughly.
const ENTRY: usize = 20;

/// Buckets by number; those of negative values by the number of their opposite. Doubles of all sizes above [`SMALLEST`] lie in
/// some 36,000 buckets on each side, those of any real measure in a few hundred.
#[derive(Default)]
pub(super) struct Quantiles {
    negative: BTreeMap<i32, u64>,
    zero: u64,
    positive: BTreeMap<i32, u64>,
}

fn log_gamma() -> f64 {
    ((1.0 + ACCURACY) / (1.0 - ACCURACY)).ln()
}

/// The number of the bucket (γ^(i-1), γ^i] that holds a positive value.
fn bucket(value: f64) -> i32 {
    (value.min(f64::MAX).ln() / log_gamma()).ceil() as i32
}

/// The value whose relative distance to both borders of a bucket is the same: 2 γ^i / (γ + 1).
fn middle(bucket: i32) -> f64 {
    let gamma = (1.0 + ACCURACY) / (1.0 - ACCURACY);
    (2.0 * (f64::from(bucket) * log_gamma()).exp() / (gamma + 1.0)).min(f64::MAX)
}

impl Quantiles {
    fn insert(&mut self, value: f64) {
        // What is not a number has no rank.
        if value.is_nan() {
        } else if value > SMALLEST {
            *self.positive.entry(bucket(value)).or_default() += 1;
        } else if value < -SMALLEST {
            *self.negative.entry(bucket(-value)).or_default() += 1;
        } else {
            self.zero += 1;
        }
    }

    /// The value of rank `share` × (n - 1), rounded down.
    fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.negative.values().chain(self.positive.values()).sum::<u64>() + self.zero;
        let rank = (share * count.checked_sub(1)? as f64).floor() as u64;
        let negative = self.negative.iter().rev().map(|(bucket, count)| (-middle(*bucket), *count));
        let positive = self.positive.iter().map(|(bucket, count)| (middle(*bucket), *count));
        let mut seen = 0;
        negative.chain([(0.0, self.zero)]).chain(positive).find_map(|(value, count)| {
            seen += count;
            (seen > rank).then_some(value)
        })
    }
}

impl Sketch for Quantiles {
    const SAVED: &'static str = "ddsketch";

    fn add(&mut self, values: &Reader<'_>, row: usize) {
        if let Some(value) = values.double(row) {
            self.insert(value);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.zero += other.zero;
        for (bucket, count) in &other.negative {
            *self.negative.entry(*bucket).or_default() += count;
        }
        for (bucket, count) in &other.positive {
            *self.positive.entry(*bucket).or_default() += count;
        }
    }

    fn heap(&self) -> usize {
        size_of::<Self>() + (self.negative.len() + self.positive.len()) * ENTRY
    }

    fn results(sketches: &[Option<&Self>], share: f64) -> ArrayRef {
        let result = |sketch: &Option<&Self>| sketch.and_then(|sketch| sketch.quantile(share));
        Arc::new(sketches.iter().map(result).collect::<Float64Array>())
    }

    fn saved(_: &DataType) -> DataType {
        DataType::Binary
    }

    fn save(sketches: &[Option<&Self>], _: &DataType) -> Result<ArrayRef> {
        let bytes = |sketch: &Self| {
            let mut bytes = vec![SAVED];
            bytes.extend(sketch.zero.to_le_bytes());
            bytes.extend((sketch.negative.len() as u64).to_le_bytes());
            for (bucket, count) in sketch.negative.iter().chain(&sketch.positive) {
                bytes.extend(bucket.to_le_bytes());
                bytes.extend(count.to_le_bytes());
            }
            bytes
        };
        Ok(binary(sketches.iter().map(|sketch| sketch.map(bytes))))
    }

    fn load(saved: &ArrayRef, row: usize) -> Result<Self> {
        let wrong = || misfit("a saved DDSketch cannot be read");
        let Some((&SAVED, mut rest)) = saved.as_binary::<i32>().value(row).split_first() else { return Err(wrong()) };
        let mut sketch =
            Quantiles { zero: u64::from_le_bytes(take(&mut rest).ok_or_else(wrong)?), ..Quantiles::default() };
        let mut negative = u64::from_le_bytes(take(&mut rest).ok_or_else(wrong)?);
        while !rest.is_empty() {
            let bucket = i32::from_le_bytes(take(&mut rest).ok_or_else(wrong)?);
            let count = u64::from_le_bytes(take(&mut rest).ok_or_else(wrong)?);
            match negative.checked_sub(1) {
                Some(less) => {
                    negative = less;
                    sketch.negative.insert(bucket, count);
                }
                None => {
                    sketch.positive.insert(bucket, count);
                }
            }
        }
        Ok(sketch)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk::<N>()?;
    *rest = others;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_per_cent_of_the_value_with_that_rank() {
        let value = |i: i64| ((i * 7_919) % 1_000 - 300) as f64 * 1.37;
        let (mut whole, mut left, mut right) = (Quantiles::default(), Quantiles::default(), Quantiles::default());
        let mut values: Vec<f64> = (0..5_000).map(value).collect();
        for (i, value) in values.iter().enumerate() {
            whole.insert(*value);
            if i % 3 == 0 { left.insert(*value) } else { right.insert(*value) }
        }
        right.merge(&left);
        values.sort_by(f64::total_cmp);
        for share in [0.0, 0.01, 0.25, 0.3, 0.5, 0.95, 0.999, 1.0] {
            let exact = values[(share * 4_999.0) as usize];
            let found = whole.quantile(share).unwrap();
            assert!((found - exact).abs() <= exact.abs() * ACCURACY * 1.000_001, "{share}: {found} for {exact}");
            assert_eq!(right.quantile(share), Some(found));
        }
        let saved = Quantiles::save(&[Some(&whole)], &DataType::Float64).unwrap();
        assert_eq!(Quantiles::load(&saved, 0).unwrap().quantile(0.95), whole.quantile(0.95));
    }

    #[test]
    fn doubles_of_every_size_have_a_bucket_and_nothing_has_no_quantile() {
        let mut sketch = Quantiles::default();
        sketch.insert(f64::NAN);
        assert_eq!(sketch.quantile(0.5), None);
        for value in [f64::NEG_INFINITY, f64::MIN, -1e-300, 0.0, -0.0, f64::MIN_POSITIVE, f64::MAX, f64::INFINITY] {
            sketch.insert(value);
        }
        assert!(sketch.quantile(0.0).is_some_and(|least| least.is_finite() && least < -1e307));
        assert_eq!(sketch.quantile(0.5), Some(0.0));
        assert!(sketch.quantile(1.0).is_some_and(|most| most.is_finite() && most > 1e307));
    }
}
