use super::Loaded;
use crate::adapters::methods;
use crate::adapters::peft::Tuner;
use crate::adapters::peft::config::ends_with;
use crate::adapters::peft::json::Node;
use crate::adapters::peft::layout::Form;
use crate::adapters::peft::module::Module;
use crate::error::Result;
use regex_lite::Regex;

pub(in crate::adapters::peft) const TUNER: Tuner = Tuner {
    name: "IA3",
    tensors: &["ia3_l"],
    shared: &[],
    reads: &["feedforward_modules", "fan_in_fan_out"],
    ignores: &["init_ia3_weights"],
    load,
};

fn load(module: &Module<'_>) -> Loaded {
    let (m, n) = module.shape()?;
    let l = module.take("ia3_l")?;
    let convolution = module.base().len() > 2;
    // One axis of the base: outputs, or inputs, each of which a kernel has several numbers of. In groups a kernel has those of one group alone.
    let (mut inputs, shape) = (if convolution { module.base()[1] } else { n }, l.shape());
    let (left, right) = match convolution {
        true => {
            let count = shape.get(1).copied().unwrap_or(0);
            let groups = count / inputs;
            let right = groups > 0 && groups * inputs == count && m.is_multiple_of(groups);
            (count == m, right)
        }
        false => (*shape == [m, 1], *shape == [1, n]),
    };
    let right = match (left, right) {
        (true, true) => is_feedforward(module)?,
        (false, false) => {
            return Err(
                l.bad(format!("has shape {shape:?}, which fits neither {m} outputs nor {inputs} inputs"))
            );
        }
        (_, right) => right,
    };
    if right && convolution {
        let groups = shape[1] / inputs;
        if groups > 1 {
            module.set_form(Form::Grouped(groups));
            inputs *= groups;
        }
    }
    let (m, n) = module.shape()?;
    let values = l.vector(Some(if right { inputs } else { m }))?;
    let adapter = match right {
        false => methods::scaling((m, n), Some(&values), None)?,
        true => {
            let each = n / inputs;
            let spread: Vec<f64> = (0..n).map(|j| values[j / each]).collect();
            methods::scaling((m, n), None, Some(&spread))?
        }
    };
    Ok(Box::new(adapter))
}

/// A list names ends of paths, a string is an expression for the whole path.
fn is_feedforward(module: &Module<'_>) -> Result<bool> {
    let config = module.config();
    match config.get("feedforward_modules") {
        Some(Node::Text(pattern)) => match Regex::new(&format!("^(?:{pattern})$")) {
            Ok(regex) => Ok(regex.is_match(module.name())),
            Err(e) => Err(config.bad(format!("field `feedforward_modules` = {pattern:?}: {e}"))),
        },
        _ => Ok(config.names("feedforward_modules")?.iter().any(|name| ends_with(module.name(), name))),
    }
}
