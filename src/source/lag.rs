//! Asks a source all that it takes to say how far a position is behind, and how long that can last.

use chrono::{DateTime, Utc};

use super::Source;
use crate::error::Result;
use crate::model::lag::{self, Lag, Sighting};
use crate::model::offset::Offsets;

/// Every partition of `source`, seen from the position `at`.
pub async fn measure(source: &mut dyn Source, at: &Offsets, now: DateTime<Utc>) -> Result<Vec<Lag>> {
    Ok(lag::measure(&sight(source, at).await?, now))
}

/// The facts for [`measure`].
pub async fn sight(source: &mut dyn Source, at: &Offsets) -> Result<Sighting> {
    let (earliest, end) = (source.earliest().await?, source.end().await?);
    let next = lag::unread(at, &earliest, &end);
    if next.0.is_empty() {
        return Ok(Sighting { at: at.clone(), earliest, end, ..Sighting::default() });
    }
    let unread = source.times(&next).await?;
    let retention = source.retention().await?;
    // The age of what is kept matters only where it must serve for an answer.
    let by_age_alone = |topic: &str| retention.get(topic).is_some_and(|kept| kept.bytes.is_none() || !kept.deletes);
    let kept = next.0.keys().filter(|partition| !by_age_alone(&partition.topic));
    let kept =
        kept.filter_map(|partition| Some((partition.clone(), *earliest.0.get(partition).filter(|at| **at > 0)?)));
    let kept = Offsets(kept.collect());
    let oldest = if kept.0.is_empty() { lag::Times::new() } else { source.times(&kept).await? };
    Ok(Sighting { at: at.clone(), earliest, end, unread, oldest, retention })
}
