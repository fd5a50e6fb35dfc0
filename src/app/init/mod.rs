//! `tidegate init`: a folder that runs as it is, without any service.

use object_store::path::Path;
use object_store::{PutMode, PutOptions, PutPayload};
use serde_json::json;

use super::{Failure, Outcome};
use crate::cli::InitArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::storage;

const PIPELINE: &str = include_str!("../../pipelines/orders.yaml");
const STORES: &str = include_str!("../../pipelines/ref/stores.csv");
const SCHEMA: &str = include_str!("../../pipelines/tidegate.schema.json");
const GITIGNORE: &str = "/lake\n/checkpoints\n";

pub(super) async fn init(args: &InitArgs) -> Result<Outcome, Failure> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if args.name.is_empty() || !args.name.starts_with(|c: char| c.is_ascii_lowercase()) || !args.name.chars().all(valid)
    {
        return Err(Error::new(ErrorKind::Usage, format!("`{}` is not a pipeline name", args.name))
            .help("write a lower-case letter first, then letters, digits, `-` and `_`")
            .into());
    }
    let dir = std::path::absolute(&args.dir)
        .map_err(|error| Error::failed("the folder has no absolute path").caused_by(error))?;
    let folder = storage::open(&dir.to_string_lossy())?;
    let pipeline = PIPELINE.replace("\nname: orders\n", &format!("\nname: {}\n", args.name));
    let files = [
        (format!("pipelines/{}.yaml", args.name), pipeline.as_str()),
        ("pipelines/ref/stores.csv".to_string(), STORES),
        ("pipelines/tidegate.schema.json".to_string(), SCHEMA),
        (".gitignore".to_string(), GITIGNORE),
    ];
    let mut text = String::new();
    let mut written = Vec::new();
    for (name, content) in files {
        let payload = PutPayload::from(content.as_bytes().to_vec());
        match folder.store.put_opts(&Path::from(name.as_str()), payload, PutOptions::from(PutMode::Create)).await {
            Ok(_) => {
                text.push_str(&format!("wrote {}\n", args.dir.join(&name).display()));
                written.push(name);
            }
            Err(object_store::Error::AlreadyExists { .. }) => {
                text.push_str(&format!("kept  {} (it exists)\n", args.dir.join(&name).display()));
            }
            Err(error) => return Err(storage::explain(&error, "write the file", &name).into()),
        }
    }
    let file = args.dir.join(format!("pipelines/{}.yaml", args.name));
    text.push_str(&format!("\nnext: tidegate test {0}\n      tidegate run {0}\n", file.display()));
    Ok(Outcome { text, json: json!({ "version": 1, "status": "ok", "written": written }), code: 0 })
}
