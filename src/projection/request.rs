//! What a user asks of a family: a budget, some parameters, or both.

use crate::error::{Error, Result};
use crate::storage::Storage;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The most that a member may take.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Budget {
    /// Parameters, as a fraction of the dense matrix's.
    Ratio(f64),
    /// Parameters.
    Params(usize),
    /// Bytes of factors, scales and indices in the storage asked for.
    Bytes(usize),
}

impl Display for Budget {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Budget::Ratio(r) => write!(f, "ratio {r}"),
            Budget::Params(n) => write!(f, "{n} parameters"),
            Budget::Bytes(n) => write!(f, "{n} bytes"),
        }
    }
}

/// What a member with certain parameters takes; built factor by factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    storage: Storage,
    /// Stored numbers.
    pub params: usize,
    /// Bytes of factors, scales and indices.
    pub bytes: usize,
}

impl Size {
    /// Nothing yet.
    pub fn new(storage: Storage) -> Self {
        Self { storage, params: 0, bytes: 0 }
    }

    /// Adds `blocks` matrices of `rows x cols`.
    pub fn factor(mut self, blocks: usize, rows: usize, cols: usize) -> Self {
        self.params = self.params.saturating_add(blocks.saturating_mul(rows).saturating_mul(cols));
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(self.storage.bytes(rows, cols)));
        self
    }

    /// Adds what was counted apart, in another storage.
    pub(crate) fn with(mut self, other: Size) -> Self {
        self.params = self.params.saturating_add(other.params);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self
    }

    /// The storage that bytes are counted in.
    pub(crate) fn storage(&self) -> Storage {
        self.storage
    }

    /// Adds `count` indices of 4 bytes; they are no parameters.
    pub fn indices(mut self, count: usize) -> Self {
        self.bytes = self.bytes.saturating_add(count.saturating_mul(4));
        self
    }
}

/// A budget, a storage and named parameters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    budget: Option<Budget>,
    storage: Option<Storage>,
    params: BTreeMap<String, String>,
}

impl Request {
    /// Asks for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the budget.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sets the storage that byte budgets count with; `f32` when not set.
    pub fn storage(mut self, storage: Storage) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets a parameter, such as `rank`, `blocks` (`4` or `4x8`) or one of the family's own.
    pub fn with(mut self, name: impl Into<String>, value: impl Display) -> Self {
        self.params.insert(name.into(), value.to_string());
        self
    }

    /// The parameters set.
    pub fn params(&self) -> &BTreeMap<String, String> {
        &self.params
    }

    /// The budget set.
    pub fn the_budget(&self) -> Option<Budget> {
        self.budget
    }

    /// An empty [`Size`] in the storage asked for.
    pub fn size(&self) -> Size {
        Size::new(self.storage.unwrap_or(Storage::F32))
    }

    /// The request without parameters that `known` does not list.
    pub fn only(&self, known: &[(&str, &str)]) -> Self {
        let params = self.params.iter().filter(|(name, _)| known.iter().any(|(k, _)| k == name));
        Self { params: params.map(|(k, v)| (k.clone(), v.clone())).collect(), ..self.clone() }
    }

    /// Refuses parameters that `known` does not list.
    pub(crate) fn check_names(&self, structure: &str, known: &[(&str, &str)]) -> Result<()> {
        match self.params.keys().find(|name| !known.iter().any(|(k, _)| k == name)) {
            None => Ok(()),
            Some(name) => {
                let names: Vec<_> = known.iter().map(|(k, _)| *k).collect();
                let expected = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                Err(Error::Unknown {
                    kind: "parameter",
                    name: name.clone(),
                    expected: format!("{expected} (for {structure})"),
                })
            }
        }
    }

    /// A parameter, where it is set.
    ///
    /// # Errors
    /// When it does not parse, what its type says if that is an [`Error`], else [`Error::Parameter`].
    pub fn get<V: FromStr<Err: 'static>>(&self, name: &str) -> Result<Option<V>> {
        let parse = |text: &String| {
            text.parse::<V>().map_err(|error| match (Box::new(error) as Box<dyn Any>).downcast::<Error>() {
                Ok(own) => *own,
                Err(_) => {
                    Error::parameter(name, text, format!("a value of type {}", std::any::type_name::<V>()))
                }
            })
        };
        self.params.get(name).map(parse).transpose()
    }

    /// A whole-number parameter inside `range`, where it is set.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it does not parse or is out of range.
    pub fn get_in(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        match self.get::<usize>(name)? {
            Some(value) if !range.contains(&value) => Err(out_of_range(name, value, &range)),
            value => Ok(value),
        }
    }

    /// The `blocks` parameter, `b` or `JxK`, each at least 1 and at most `(out, in)`.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it does not parse or is out of range.
    pub fn blocks(&self, (out, inp): (usize, usize)) -> Result<Option<(usize, usize)>> {
        let Some(text) = self.params.get("blocks") else { return Ok(None) };
        let bad =
            || Error::parameter("blocks", text, format!("b or JxK with 1 <= J <= {out} and 1 <= K <= {inp}"));
        let (a, b) = text.split_once(['x', 'X']).unwrap_or((text, text));
        let parse = |part: &str| part.trim().parse::<usize>().map_err(|_| bad());
        let (a, b) = (parse(a)?, parse(b)?);
        if a == 0 || b == 0 || a > out || b > inp { Err(bad()) } else { Ok(Some((a, b))) }
    }

    /// Whether a member of this size meets the budget; true without one.
    pub fn allows(&self, (out, inp): (usize, usize), size: Size) -> bool {
        match self.budget {
            None => true,
            Some(Budget::Ratio(r)) => size.params as f64 <= r * out as f64 * inp as f64 * (1.0 + 1e-12),
            Some(Budget::Params(n)) => size.params <= n,
            Some(Budget::Bytes(n)) => size.bytes <= n,
        }
    }

    /// The size of the one parameter that a budget determines: as set by name, else the largest within the budget.
    /// `size` must not fall with the parameter.
    ///
    /// # Errors
    /// [`Error::Parameter`] when out of `range`, or when neither the parameter nor a budget is given; [`Error::Budget`]
    /// when the budget does not admit it.
    pub fn choose(
        &self,
        structure: &str,
        shape: (usize, usize),
        name: &str,
        range: RangeInclusive<usize>,
        size: impl Fn(usize) -> Size,
    ) -> Result<usize> {
        self.check_budget()?;
        let (first, last) = (*range.start(), *range.end());
        if let Some(value) = self.get_in(name, range)? {
            return self.require(structure, shape, size(value)).map(|()| value);
        }
        if self.budget.is_none() {
            return Err(Error::parameter(name, "nothing", "a value, or a budget"));
        }
        self.require(structure, shape, size(first))?;
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.allows(shape, size(middle)) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(low)
    }

    /// Refuses a member that the budget does not admit.
    ///
    /// # Errors
    /// [`Error::Budget`], with `size` as the least that would do.
    pub fn require(&self, structure: &str, shape: (usize, usize), size: Size) -> Result<()> {
        self.check_budget()?;
        match self.budget {
            Some(budget) if !self.allows(shape, size) => {
                let minimum = match budget {
                    Budget::Bytes(_) => format!("{} bytes", size.bytes),
                    Budget::Params(_) => format!("{} parameters", size.params),
                    Budget::Ratio(_) => {
                        format!(
                            "ratio {:.4} ({} parameters)",
                            size.params as f64 / (shape.0 as f64 * shape.1 as f64),
                            size.params
                        )
                    }
                };
                Err(Error::Budget {
                    structure: structure.to_owned(),
                    out_features: shape.0,
                    in_features: shape.1,
                    budget: budget.to_string(),
                    minimum,
                })
            }
            _ => Ok(()),
        }
    }

    fn check_budget(&self) -> Result<()> {
        match self.budget {
            Some(Budget::Ratio(r)) if !(r.is_finite() && r > 0.0) => {
                Err(Error::parameter("ratio", r, "a positive number"))
            }
            _ => Ok(()),
        }
    }
}

fn out_of_range(name: &str, value: usize, range: &RangeInclusive<usize>) -> Error {
    Error::parameter(name, value, format!("{} to {}", range.start(), range.end()))
}
