//! `maintain`: of the pipeline, and of tables where they differ.

use std::time::Duration;

use super::Checker;
use crate::config::raw::{RawCompact, RawMaintain, RawPipeline};
use crate::config::spec::{MaintainSpec, Maintenance, SHORTEST_RETENTION};
use crate::units;

/// Smaller files than this are what compaction is there to avoid.
const SMALLEST_TARGET: u64 = 4_000_000;

impl Checker<'_> {
    pub(super) fn maintain(&mut self, raw: &RawPipeline) -> MaintainSpec {
        let default = match &raw.maintain {
            Some(maintain) => self.maintenance(&["maintain"], maintain, &Maintenance::default()),
            None => Maintenance::default(),
        };
        let mut spec = MaintainSpec { default, ..MaintainSpec::default() };
        for (name, table) in &raw.tables {
            if let Some(maintain) = &table.maintain {
                let own = self.maintenance(&["tables", name, "maintain"], maintain, &spec.default);
                spec.tables.insert(name.clone(), own);
            }
        }
        spec
    }

    fn maintenance(&mut self, at: &[&str], raw: &RawMaintain, default: &Maintenance) -> Maintenance {
        let path = |key| [at, &[key]].concat();
        let compact = match raw.compact {
            None => default.compact,
            Some(RawCompact::Auto) => true,
            Some(RawCompact::Off) => false,
        };
        let target = path("target_size");
        let target_bytes = self.quantity(&target, raw.target_size.as_ref(), units::size);
        if target_bytes.is_some_and(|bytes| bytes < SMALLEST_TARGET) {
            self.refuse(&target, "`target_size` is too small for a data file", "write at least 4MB", None);
        }
        let target_bytes = target_bytes.unwrap_or(default.target_bytes);
        let vacuum = match &raw.vacuum {
            None => default.vacuum,
            Some(text) if text.0.trim() == "off" => None,
            Some(text) => self.retention(&path("vacuum"), text),
        };
        Maintenance { compact, target_bytes, vacuum }
    }

    fn retention(&mut self, path: &[&str], text: &crate::config::raw::Quantity) -> Option<Duration> {
        let retention = self.quantity(path, Some(text), units::duration)?;
        if retention < SHORTEST_RETENTION {
            let help = "running queries, time travel and pipelines that stood still need the files of the last days; \
                        to delete younger ones once, type `tidegate vacuum FILE --retain 1d --force --yes`";
            let message = format!("a vacuum of {} is shorter than 7d", text.0);
            self.refuse(path, message, "write 7d or more, or off", Some(help.into()));
        }
        Some(retention)
    }
}
