//! Adapters of parameters (`target_parameters`): PEFT wraps a module once for each, the one that the module defines first innermost, and the file
//! does not name them.

use super::config::{Config, ends_with};
use super::folder::Tensors;
use crate::error::Result;
use std::collections::BTreeMap;

/// Beyond this many in one module, the order is taken as it stands in the settings.
const MOST: usize = 5;

/// The adapters of one module's parameters.
#[derive(Debug)]
pub(super) struct Nested {
    module: String,
    /// Where their tensors are, the innermost first.
    keys: Vec<String>,
    /// Whether the keys are the paths of the parameters; else the base decides which of those that the settings name are there.
    named: bool,
}

/// Gives the tensors of parameters the paths of those, as far as the settings tell.
pub(super) fn rename(config: &Config, modules: &mut BTreeMap<String, Tensors>) -> Result<Vec<Nested>> {
    if config.names("target_parameters")?.is_empty() {
        return Ok(Vec::new());
    }
    let mut levels: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for path in modules.keys() {
        let plain = path.trim_end_matches(".base_layer");
        let depth = (path.len() - plain.len()) / ".base_layer".len();
        levels.entry(plain.to_owned()).or_default().push((depth, path.clone()));
    }
    let mut all = Vec::new();
    for (module, mut found) in levels {
        let listed = parameters(config, &module, false)?;
        let possible = parameters(config, &module, true)?;
        found.sort();
        if possible.is_empty() || possible.len() < found.len() {
            match found.last() {
                Some((0, _)) | None => continue,
                Some((depth, path)) => {
                    return Err(config.bad(format!(
                        "module `{path}` is nested {depth} deep, and `target_parameters` names {} there",
                        possible.len()
                    )));
                }
            }
        }
        if let Some((at, (depth, path))) = found.iter().enumerate().find(|(at, (depth, _))| at != depth) {
            return Err(config.bad(format!("module `{path}` is nested {depth} deep, expected {at}")));
        }
        let mut keys: Vec<String> = found.into_iter().rev().map(|(_, path)| path).collect();
        let named = listed.len() == keys.len() && possible.len() == keys.len();
        if named {
            let names: Vec<String> = listed.iter().map(|parameter| path_of(&module, parameter)).collect();
            let tensors: Vec<_> = keys.iter().filter_map(|key| modules.remove(key)).collect();
            for (name, tensors) in names.iter().zip(tensors) {
                if modules.insert(name.clone(), tensors).is_some() {
                    return Err(config.bad(format!("`{name}` is adapted twice")));
                }
            }
            keys = names;
        }
        all.push(Nested { module, keys, named });
    }
    Ok(all)
}

/// The parameters of a module that the settings name, in their order; those that they name without a module too, if `all`.
fn parameters<'a>(config: &'a Config, module: &str, all: bool) -> Result<Vec<&'a str>> {
    let targets = config.names("target_parameters")?.into_iter();
    let found = targets.filter_map(|target| match target.rsplit_once('.') {
        Some((parent, parameter)) => ends_with(module, parent).then_some(parameter),
        None => all.then_some(target),
    });
    Ok(found.collect())
}

/// The path of a parameter; a weight has that of its module.
fn path_of(module: &str, parameter: &str) -> String {
    if parameter == "weight" { module.to_owned() } else { format!("{module}.{parameter}") }
}

impl Nested {
    pub(super) fn holds(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key)
    }

    /// The path in the base of what is adapted under `key`, and where its tensors are.
    pub(super) fn resolve(
        &self,
        key: &str,
        config: &Config,
        modules: &BTreeMap<String, Tensors>,
        shapes: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<(String, String)> {
        let paths = if self.named {
            self.keys.clone()
        } else {
            let mut listed = parameters(config, &self.module, true)?;
            listed.retain(|parameter| {
                *parameter != "weight" && shapes(&path_of(&self.module, parameter)).is_some()
            });
            // A layer like any other, none of whose parameters is meant.
            if listed.is_empty() && self.keys.len() == 1 {
                return Ok((key.to_owned(), key.to_owned()));
            }
            listed.iter().map(|parameter| path_of(&self.module, parameter)).collect()
        };
        if paths.len() != self.keys.len() {
            return Err(config.bad(format!(
                "`{}` has {} adapters of parameters, and `target_parameters` names {} that the base has",
                self.module,
                self.keys.len(),
                paths.len()
            )));
        }
        let order = self.order(&paths, config, modules, shapes)?;
        let at = match self.named {
            true => paths.iter().position(|path| path == key),
            false => order.iter().position(|at| self.keys[*at] == key),
        };
        let at = at.unwrap_or(0);
        Ok((paths[at].clone(), self.keys[order[at]].clone()))
    }

    /// For each parameter, which tensors are its own. The settings name them in the order of the module or not: where they cannot be those of the
    /// settings by their shapes, they are those of the only order that is possible.
    fn order(
        &self,
        paths: &[String],
        config: &Config,
        modules: &BTreeMap<String, Tensors>,
        shapes: &dyn Fn(&str) -> Option<Vec<usize>>,
    ) -> Result<Vec<usize>> {
        let count = paths.len();
        let as_listed: Vec<usize> = (0..count).collect();
        if !(2..=MOST).contains(&count) {
            return Ok(as_listed);
        }
        // Whether tensors fit a parameter, and its transpose.
        let fit = |path: &str, key: &str| -> [bool; 2] {
            let dims = shapes(path).and_then(|shape| match shape[..] {
                [experts, rows, cols] => Some((experts, rows, cols)),
                [rows, cols] => Some((1, rows, cols)),
                _ => None,
            });
            let tensor =
                |name: &str| modules.get(key).and_then(|tensors| tensors.get(name)).map(|t| t.shape());
            match (dims, tensor("lora_A.weight"), tensor("lora_B.weight")) {
                (Some((experts, rows, cols)), Some(&[a, inp]), Some(&[out, b])) => {
                    let rank = config.size_for("r", "rank_pattern", path).ok().flatten();
                    let told = rank.is_none_or(|rank| rank.checked_mul(experts) == Some(a));
                    let stacked = told && a == b && experts > 0 && a.is_multiple_of(experts);
                    [stacked && (out, inp) == (rows, cols), stacked && (inp, out) == (rows, cols)]
                }
                _ => [true, true],
            }
        };
        let table: Vec<Vec<[bool; 2]>> =
            paths.iter().map(|path| self.keys.iter().map(|key| fit(path, key)).collect()).collect();
        let fits = |order: &[usize], turned: usize| {
            order.iter().enumerate().all(|(at, key)| table[at][*key][turned])
        };
        if fits(&as_listed, 0) || fits(&as_listed, 1) {
            return Ok(as_listed);
        }
        let orders = permutations(count);
        for turned in [0, 1] {
            let mut found = orders.iter().filter(|order| fits(order, turned));
            match (found.next(), found.next()) {
                (Some(order), None) => return Ok(order.clone()),
                (Some(_), Some(_)) => {
                    return Err(config.bad(format!(
                        "which adapter in `{}` is whose of {} is not in the folder, and their shapes do not tell",
                        self.module,
                        paths.join(", ")
                    )));
                }
                _ => {}
            }
        }
        Ok(as_listed)
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        let mut longer: Vec<Vec<usize>> = Vec::new();
        for order in &all {
            for at in (0..count).filter(|at| !order.contains(at)) {
                longer.push(order.iter().copied().chain([at]).collect());
            }
        }
        all = longer;
    }
    all
}
