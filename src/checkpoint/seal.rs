//! What makes a checkpoint object trustworthy: a version, a checksum over its content, and whose log it belongs to.
//!
//! An object that is truncated, rotten, edited by hand, from a newer tidegate or from another checkpoint is named and
//! refused. Nothing here guesses: a wrong position loses rows or doubles them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Code, Error, Result};
use crate::model::batch::FORMAT_VERSION;

const CHECKSUM: &str = "checksum";
const PIPELINE_ID: &str = "pipeline_id";

/// The first version whose objects must carry a checksum.
const SEALED_SINCE: u64 = 2;

/// `value` as the bytes of an object; `pipeline_id` marks whose it is.
pub(super) fn seal(value: &impl Serialize, pipeline_id: Option<&str>) -> Result<Vec<u8>> {
    let failed = || Error::failed("a checkpoint object could not be serialised");
    let Value::Object(mut object) = serde_json::to_value(value).map_err(|e| failed().caused_by(e))? else {
        return Err(failed());
    };
    if let (Some(id), false) = (pipeline_id, object.contains_key(PIPELINE_ID)) {
        object.insert(PIPELINE_ID.to_string(), Value::String(id.to_string()));
    }
    object.insert(CHECKSUM.to_string(), Value::String(checksum(&object)));
    let mut bytes = serde_json::to_vec_pretty(&object).map_err(|e| failed().caused_by(e))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads an object. The version comes first, so that a newer format is named as such and not as a missing field.
pub(super) fn open<T: DeserializeOwned>(bytes: &[u8], name: &str, pipeline_id: Option<&str>) -> Result<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(damaged(name, "it is empty"));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| damaged(name, &e.to_string()))?;
    let Value::Object(object) = &value else { return Err(damaged(name, "it is not a JSON object")) };
    let Some(version) = object.get("version").and_then(Value::as_u64) else {
        return Err(damaged(name, "missing field `version`"));
    };
    if version > u64::from(FORMAT_VERSION) {
        return Err(Error::config(format!(
            "checkpoint object {name} has format version {version}, this tidegate reads up to {FORMAT_VERSION}"
        ))
        .help("nothing was read or written; run the newer tidegate that wrote it")
        .help(
            "was the number changed by hand? restore this object from a backup, or: tidegate checkpoint rebuild FILE",
        ));
    }
    match object.get(CHECKSUM).and_then(Value::as_str) {
        Some(written) if written == checksum(object) => {}
        Some(_) => {
            return Err(damaged(name, "its content does not match its checksum: it was changed after it was written"));
        }
        None if version >= SEALED_SINCE => {
            return Err(damaged(name, "its checksum is missing: it was changed by hand"));
        }
        None => {}
    }
    let found = object.get(PIPELINE_ID).and_then(Value::as_str);
    if let (Some(found), Some(ours)) = (found, pipeline_id)
        && found != ours
    {
        return Err(Error::config(format!("checkpoint object {name} belongs to another checkpoint"))
            .coded(Code::CheckpointDamaged)
            .with("it was written for pipeline id", found)
            .with("metadata.json says", ours)
            .help("nothing was read or written: its offsets say nothing about the tables of this pipeline")
            .help("was it copied from another folder? restore this pipeline's own object from a backup, or: tidegate checkpoint rebuild FILE"));
    }
    serde_json::from_value(value).map_err(|e| damaged(name, &e.to_string()))
}

/// The error for an object that cannot be believed.
pub(super) fn damaged(name: &str, why: &str) -> Error {
    Error::config(format!("checkpoint object {name} is damaged: {why}"))
        .coded(Code::CheckpointDamaged)
        .help("nothing was read or written; tidegate never guesses where to start")
        .help("restore this object from a backup of the checkpoint folder")
        .help("or rebuild it from the tables, which know their last batch: tidegate checkpoint rebuild FILE")
}

/// Of everything but the checksum itself, in a form that white space and the order of fields do not change.
fn checksum(object: &Map<String, Value>) -> String {
    let mut text = String::new();
    canonical(&Value::Object(object.iter().filter(|(key, _)| *key != CHECKSUM).map(owned).collect()), &mut text);
    let hash: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// Compact JSON with sorted keys.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<&String> = object.keys().collect();
            keys.sort_unstable();
            text.push('{');
            for key in keys {
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                canonical(&object[key], text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(bytes: &[u8]) -> Result<Value> {
        open(bytes, "x.json", Some("id"))
    }

    #[test]
    fn any_change_of_content_is_seen_and_white_space_is_not() {
        let bytes = seal(&json!({"version": 2, "offsets": {"t": {"0": 12}}, "z": 1}), Some("id")).expect("seals");
        let text = String::from_utf8(bytes).expect("text");
        assert_eq!(read(text.as_bytes()).expect("opens")["offsets"]["t"]["0"], 12);
        let spread = text.replace('\n', "\r\n\t");
        assert!(read(spread.as_bytes()).is_ok());
        let mut seen = 0;
        for (at, digit) in text.char_indices().filter(|(_, c)| c.is_ascii_digit()) {
            let other = if digit == '1' { '3' } else { '1' };
            let edited = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(read(edited.as_bytes()).is_err(), "{edited}");
            seen += 1;
        }
        assert!(seen > 4);
    }

    #[test]
    fn an_object_of_another_checkpoint_is_refused() {
        let bytes = seal(&json!({"version": 2}), Some("other")).expect("seals");
        assert!(read(&bytes).expect_err("refused").report().contains("belongs to another checkpoint"));
        let unmarked = seal(&json!({"version": 2}), None).expect("seals");
        assert!(read(&unmarked).is_ok());
    }

    #[test]
    fn version_1_has_no_checksum_and_version_2_needs_one() {
        assert!(read(b"{\"version\": 1}").is_ok());
        assert!(read(b"{\"version\": 2}").expect_err("refused").report().contains("checksum is missing"));
    }
}
