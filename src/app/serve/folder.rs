//! The pipeline files that are served, as they are now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::app::validate::{Names, expand};
use crate::app::{Failure, compose};
use crate::config::spec::{PipelineSpec, SourceKind};
use crate::config::{self, LoadOptions, Loaded};
use crate::error::Result;
use crate::model::supervise::Offer;

/// Tells whether a file may have changed.
pub(super) type Stamp = Option<(SystemTime, u64)>;

/// A sound file.
#[derive(Clone)]
pub(super) struct Version {
    pub loaded: Arc<Loaded>,
    pub offer: Offer,
    /// The file as it was when it was read.
    pub stamp: Stamp,
}

/// What was read.
#[derive(Default)]
pub(super) struct Files {
    pub sound: BTreeMap<String, Version>,
    /// With the stamp from before the file was read: it may have been half written then, and whole by now.
    pub broken: BTreeMap<String, (Failure, Stamp)>,
}

/// Files that were read while pipelines ran.
pub(super) enum WasRead {
    /// All of them.
    All(Result<Files>),
    /// One that had failed.
    One(String, Result<Box<Version>, Failure>),
}

/// Reads every file again. What replaces something that works is checked whole first, SQL included; the versions in `known`
/// were.
pub(super) async fn read_again(
    paths: Vec<PathBuf>,
    target: Option<String>,
    known: BTreeSet<(String, String)>,
) -> WasRead {
    let mut files = match read(&paths, target.as_deref()) {
        Ok(files) => files,
        Err(error) => return WasRead::All(Err(error)),
    };
    let offered: Vec<Version> = files.sound.values().cloned().collect();
    for version in offered {
        let key = version.offer.key.clone();
        if !known.contains(&(key.clone(), version.offer.revision.clone()))
            && let Err(failure) = compose::check_loaded((*version.loaded).clone()).await
        {
            files.sound.remove(&key);
            files.broken.insert(key, (failure, version.stamp));
        }
    }
    WasRead::All(Ok(files))
}

/// Reads one file again, and checks it whole.
pub(super) async fn read_one(key: String, target: Option<String>) -> WasRead {
    let read = match version(Path::new(&key), target.as_deref()) {
        Ok(version) => compose::check_loaded((*version.loaded).clone()).await.map(|_| Box::new(version)),
        Err(failure) => Err(failure),
    };
    WasRead::One(key, read)
}

/// Reads every file. Two that claim one name are an error of the folder as a whole.
pub(super) fn read(paths: &[PathBuf], target: Option<&str>) -> Result<Files> {
    let mut files = Files::default();
    let mut names = Names::default();
    for file in expand(paths)? {
        let stamp = stamp(&file.display().to_string());
        match version(&file, target) {
            Ok(version) => {
                // One process, one lock and one line of metrics by name, wherever the files lie.
                names.add(&version.loaded.spec.name, &file, None)?;
                files.sound.insert(version.offer.key.clone(), version);
            }
            Err(failure) => {
                files.broken.insert(file.display().to_string(), (failure, stamp));
            }
        }
    }
    Ok(files)
}

/// Reads one file.
fn version(file: &Path, target: Option<&str>) -> Result<Version, Failure> {
    let key = file.display().to_string();
    let stamp = stamp(&key);
    let loaded = config::load(file, &LoadOptions::from_environment(target.map(str::to_string)))?;
    let offer = Offer {
        key,
        revision: revision(&loaded.spec),
        schedule: loaded.spec.trigger.clone(),
        timezone: loaded.spec.timezone,
    };
    Ok(Version { loaded: Arc::new(loaded), offer, stamp })
}

/// Changes with whatever a run can see: values behind references are in it, comments are not.
fn revision(spec: &PipelineSpec) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{spec:?}"));
    for source in spec.sources.values() {
        if let SourceKind::Kafka(kafka) = &source.kind {
            // Secrets print as stars, and a new password is a change.
            for (name, value) in &kafka.settings {
                hash.update(format!("\n{name}={}", value.reveal()));
            }
        }
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// When and how long the file is now.
pub(super) fn stamp(key: &str) -> Stamp {
    let metadata = std::fs::metadata(key).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
