//! `adapter_config.json`: typed settings, patterns, and the refusal of what is not understood.

use super::Tuner;
use super::json::Node;
use crate::error::{Error, Result};
use regex_lite::Regex;
use std::path::PathBuf;

/// A configuration file beyond this many bytes is none.
const MAX_BYTES: u64 = 16 << 20;

/// Fields that say nothing about the adapted weight, for any tuner.
const INFORMATIONAL: &[&str] = &[
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "megatron_config",
    "megatron_core",
    "runtime_config",
];

#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    text: Vec<u8>,
    fields: Vec<(String, Node)>,
}

impl Config {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let io = |source| Error::Io { path: path.clone(), source };
        let bad = |reason: String| Error::File { path: path.clone(), reason };
        let len = std::fs::metadata(&path).map_err(io)?.len();
        if len > MAX_BYTES {
            return Err(bad(format!("{len} bytes, expected at most {MAX_BYTES}")));
        }
        let text = std::fs::read(&path).map_err(io)?;
        match serde_json::from_slice(&text).map_err(|e| bad(format!("not a configuration: {e}")))? {
            Node::Map(fields) => Ok(Self { path, text, fields }),
            other => Err(bad(format!("{other}, expected an object"))),
        }
    }

    pub(super) fn text_as_read(&self) -> &[u8] {
        &self.text
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::File { path: self.path.clone(), reason: reason.into() }
    }

    /// Refuses fields that this tuner does not know, unless they say nothing.
    pub(super) fn check_fields(&self, tuner: &Tuner) -> Result<()> {
        let known =
            |name: &str| [INFORMATIONAL, tuner.reads, tuner.ignores].iter().any(|list| list.contains(&name));
        match self.fields.iter().find(|(name, value)| !known(name) && !value.is_empty()) {
            Some((name, value)) => Err(self.bad(format!(
                "field `{name}` = {value} is not known for {}, and may change the result: expected null, false or nothing",
                tuner.name
            ))),
            None => Ok(()),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.fields
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, node)| node)
            .filter(|n| **n != Node::Null)
    }

    fn wrong(&self, name: &str, node: &Node, expected: &str) -> Error {
        self.bad(format!("field `{name}` = {node}: expected {expected}"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.get(name).map(|node| self.as_number(name, node)).transpose()
    }

    fn as_number(&self, name: &str, node: &Node) -> Result<f64> {
        match node {
            Node::Number(number) if number.is_finite() => Ok(*number),
            other => Err(self.wrong(name, other, "a finite number")),
        }
    }

    pub(crate) fn need_number(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.bad(format!("field `{name}` is missing: expected a number")))
    }

    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>> {
        self.get(name).map(|node| self.as_size(name, node)).transpose()
    }

    fn as_size(&self, name: &str, node: &Node) -> Result<usize> {
        match node {
            Node::Number(n) if *n >= 0.0 && n.fract() == 0.0 && *n <= (1u64 << 53) as f64 => Ok(*n as usize),
            other => Err(self.wrong(name, other, "a whole number")),
        }
    }

    pub(crate) fn need_size(&self, name: &str) -> Result<usize> {
        self.size(name)?.ok_or_else(|| self.bad(format!("field `{name}` is missing: expected a number")))
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Node::Flag(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a name")),
        }
    }

    /// One of a few names; the first where there is none.
    pub(crate) fn choice(&self, name: &str, names: &[&'static str]) -> Result<&'static str> {
        let text = self.text(name)?;
        let found = match text {
            None => names.first(),
            Some(text) => names.iter().find(|known| **known == text),
        };
        found.copied().ok_or_else(|| {
            self.bad(format!("field `{name}` = {:?}: expected {}", text.unwrap_or(""), names.join(", ")))
        })
    }

    /// A list of names; a single one counts as a list.
    pub(crate) fn names(&self, name: &str) -> Result<Vec<&str>> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Node::Text(text)) => Ok(vec![text]),
            Some(Node::List(list)) => list
                .iter()
                .map(|node| match node {
                    Node::Text(text) => Ok(text.as_str()),
                    other => Err(self.wrong(name, other, "names")),
                })
                .collect(),
            Some(other) => Err(self.wrong(name, other, "a list of names")),
        }
    }

    /// The first entry of a pattern (in the order of the file) whose key matches a module's path.
    fn pattern(&self, name: &str, module: &str) -> Result<Option<&Node>> {
        let entries = match self.get(name) {
            None => return Ok(None),
            Some(Node::Map(entries)) => entries,
            Some(other) => return Err(self.wrong(name, other, "an object")),
        };
        for (key, value) in entries {
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$"));
            let regex = regex.map_err(|e| self.bad(format!("field `{name}`: pattern {key:?}: {e}")))?;
            if regex.is_match(module) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    pub(crate) fn number_for(&self, name: &str, pattern: &str, module: &str) -> Result<Option<f64>> {
        match self.pattern(pattern, module)? {
            Some(node) => self.as_number(pattern, node).map(Some),
            None => self.number(name),
        }
    }

    pub(crate) fn size_for(&self, name: &str, pattern: &str, module: &str) -> Result<Option<usize>> {
        match self.pattern(pattern, module)? {
            Some(node) => self.as_size(pattern, node).map(Some),
            None => self.size(name),
        }
    }

    /// Whether a version field is at least `major.minor`; `None` where there is no such field.
    pub(crate) fn version_at_least(&self, wanted: (u64, u64)) -> Result<Option<bool>> {
        let Some(text) = self.text("peft_version")? else { return Ok(None) };
        let mut parts = text.split('.').map(|part| part.parse::<u64>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => Ok(Some((major, minor) >= wanted)),
            _ => Err(self.bad(format!("field `peft_version` = {text:?}: expected a version"))),
        }
    }
}

/// Whether a module's path ends with a name.
pub(crate) fn ends_with(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}
