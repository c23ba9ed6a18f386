//! Permutations as two butterflies of switches: the looping algorithm for a Benes network.

/// Which pairs of features are exchanged, `[bit][first of the pair]`: by the stages on the side of the inputs, and by those on the side of
/// the outputs.
pub(super) struct Switches {
    pub(super) inputs: Vec<Vec<bool>>,
    pub(super) outputs: Vec<Vec<bool>>,
}

/// Switches that bring input `order[j]` to output `j`, for a permutation of `2^levels` features. The stages of the inputs act first, from
/// the highest bit to the lowest, then those of the outputs, from the lowest to the highest.
pub(super) fn route(order: Vec<usize>, levels: usize) -> Switches {
    let size = order.len();
    let none = vec![vec![false; size]; levels];
    let mut switches = Switches { inputs: none.clone(), outputs: none };
    // Networks still to be set: their permutation, their highest bit, and where their features start.
    let mut open = vec![(order, levels, 0)];
    while let Some((order, levels, start)) = open.pop() {
        let Some(bit) = levels.checked_sub(1) else { continue };
        let half = 1 << bit;
        let upper = colours(&order, half);
        let mut inner = [vec![0; half], vec![0; half]];
        for first in 0..half {
            switches.inputs[bit][start + first] = upper[first];
            switches.outputs[bit][start + first] = upper[order[first]];
            for output in [first, first + half] {
                inner[usize::from(upper[order[output]])][first] = order[output] % half;
            }
        }
        let [low, high] = inner;
        open.push((low, bit, start));
        open.push((high, bit, start + half));
    }
    switches
}

/// Which half of the inner network each input goes through: never the same for the two inputs of a switch, nor for the two
/// inputs that meet at a switch of the outputs.
fn colours(order: &[usize], half: usize) -> Vec<bool> {
    let mut output = vec![0; order.len()];
    order.iter().enumerate().for_each(|(j, &i)| output[i] = j);
    let mut upper: Vec<Option<bool>> = vec![None; order.len()];
    for first in 0..order.len() {
        let mut input = first;
        while upper[input].is_none() {
            let partner = input ^ half;
            (upper[input], upper[partner]) = (Some(false), Some(true));
            input = order[output[partner] ^ half];
        }
    }
    upper.into_iter().map(|upper| upper == Some(true)).collect()
}
