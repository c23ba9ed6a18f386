//! What the example tools share: exit codes, tables, progress bars.
#![allow(dead_code)]

mod table;

#[allow(unused_imports)]
pub use table::{median, table};

use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::process::ExitCode;
use structmat::Error;
use structmat::models::{Architecture, Model};

/// What a tool returns: its error says everything in one line.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs a tool; an error becomes one line on standard error and exit code 1.
pub fn run(tool: impl FnOnce() -> Outcome) -> ExitCode {
    match tool() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// A parameter of a family, as `key=value`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Opens a model. Its description is a shipped one by name, one in a file, the `config.json` beside the model, or, where there is none, the
/// shipped one if all its tensors are there.
pub fn model(path: &Path, architecture: Option<&str>) -> structmat::Result<Model> {
    let source = structmat::io::open(path)?;
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let config = folder.unwrap_or(Path::new("")).join("config.json");
    let architecture = match architecture {
        Some("all-minilm-l6-v2") => Architecture::all_minilm_l6_v2(),
        Some(path) => Architecture::load(path)?,
        None if config.exists() => Architecture::load(config)?,
        None => match Model::new(Architecture::all_minilm_l6_v2(), source.clone()) {
            Ok(model) => return Ok(model),
            Err(_) => {
                return Err(Error::File {
                    path: config,
                    reason: "not there: expected a description beside the model, or `--architecture`".into(),
                });
            }
        },
    };
    Model::new(architecture, source)
}

/// A bar on standard error; invisible where that is no terminal.
pub fn progress(len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
    ProgressBar::new(len as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
