use crate::error::{Error, Result};
use crate::io::Checkpoint;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// Token ids of some sequences, end to end: no padding.
///
/// ```
/// use structmat::models::Tokens;
/// let tokens = Tokens::new(vec![101, 7592, 102, 101, 102], vec![0, 3, 5])?;
/// assert_eq!(tokens.sequences().collect::<Vec<_>>(), [&[101, 7592, 102][..], &[101, 102]]);
/// assert!(Tokens::new(vec![101, 102], vec![0, 2, 2]).is_err()); // the second sequence is empty
/// # Ok::<(), structmat::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Tokens {
    /// Sequence `i` is `ids[offsets[i]..offsets[i + 1]]`.
    ///
    /// # Errors
    /// [`Error::Parameter`] unless the offsets rise from 0 to the number of ids; each sequence has at least one token.
    pub fn new(ids: Vec<u32>, offsets: Vec<usize>) -> Result<Self> {
        check_offsets(&offsets, ids.len())?;
        Ok(Self { ids, offsets })
    }

    /// From one slice of ids per sequence.
    ///
    /// # Errors
    /// [`Error::Parameter`] when one is empty.
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: impl IntoIterator<Item = S>) -> Result<Self> {
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for sequence in sequences {
            ids.extend_from_slice(sequence.as_ref());
            offsets.push(ids.len());
        }
        Self::new(ids, offsets)
    }

    /// Reads the integer tensors `input_ids` (flat) and `offsets` (one more than there are sequences) of a safetensors file.
    ///
    /// # Errors
    /// Those of [`Checkpoint::integers`] and [`new`](Self::new).
    pub fn load(file: &Checkpoint) -> Result<Self> {
        let offsets = file.integers("offsets")?;
        Self::new(file.integers("input_ids")?, offsets.into_iter().map(|offset| offset as usize).collect())
    }

    /// The ids, sequence after sequence.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each sequence starts, and the end.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The sequences.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets.windows(2).map(|ends| &self.ids[ends[0]..ends[1]])
    }

    /// These sequences and `count` more, each of which begins as one of them and ends as another: more contexts for every token than the
    /// sequences have themselves. A dense model says what it makes of any text, so that a compressed one can learn it from text without sense too.
    ///
    /// ```
    /// use structmat::models::Tokens;
    /// let tokens = Tokens::from_sequences([[1, 10, 11, 2], [1, 20, 21, 2]])?.spliced(5, 0);
    /// assert_eq!(tokens.n_sequences(), 7);
    /// assert!(tokens.sequences().all(|sequence| sequence[0] == 1 && sequence.ends_with(&[2])));
    /// # Ok::<(), structmat::Error>(())
    /// ```
    pub fn spliced(&self, count: usize, seed: u64) -> Tokens {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut ids, mut offsets) = (self.ids.clone(), self.offsets.clone());
        let longest = self.sequences().map(<[u32]>::len).max().unwrap_or(0);
        let count = if self.n_sequences() == 0 { 0 } else { count };
        for _ in 0..count {
            // A sequence, and where it is cut: after at least one token, before the last one where there are several.
            let mut cut = || {
                let k = rng.random_range(0..self.n_sequences());
                let (from, to) = (self.offsets[k], self.offsets[k + 1]);
                (from, from + rng.random_range(1..(to - from).max(2)), to)
            };
            let ((from, start, _), (_, end, to)) = (cut(), cut());
            let room = longest.saturating_sub(start - from).max(1);
            ids.extend_from_slice(&self.ids[from..start]);
            ids.extend_from_slice(&self.ids[end.min(to - 1).max(to.saturating_sub(room))..to]);
            offsets.push(ids.len());
        }
        Tokens { ids, offsets }
    }

    /// The same sequences in batches of at most `tokens` tokens, or of one sequence where that one is longer: what is computed with
    /// at once, and so how much memory it takes.
    pub fn batches(&self, tokens: usize) -> impl Iterator<Item = Tokens> {
        let mut first = 0;
        std::iter::from_fn(move || {
            let start = self.offsets[first];
            let fits = |end: &&usize| **end - start <= tokens;
            let count = self.offsets[first + 1..].iter().take_while(fits).count();
            let last = self.n_sequences().min(first + count.max(1));
            let batch = (first < last).then(|| self.part(first..last));
            first = last;
            batch
        })
    }

    fn part(&self, sequences: Range<usize>) -> Tokens {
        let start = self.offsets[sequences.start];
        let offsets: Vec<usize> =
            self.offsets[sequences.start..=sequences.end].iter().map(|offset| offset - start).collect();
        Tokens { ids: self.ids[start..self.offsets[sequences.end]].to_vec(), offsets }
    }
}

/// Offsets rise from 0 to `len`.
pub(super) fn check_offsets(offsets: &[usize], len: usize) -> Result<()> {
    if let Some(i) = offsets.windows(2).position(|ends| ends[0] >= ends[1]) {
        let received = format!("{} to {}", offsets[i], offsets[i + 1]);
        return Err(Error::parameter(format!("offsets of sequence {i}"), received, "at least one token"));
    }
    match (offsets.first(), offsets.last()) {
        (Some(0), Some(last)) if *last == len => Ok(()),
        (first, last) => {
            let received = format!("{first:?} to {last:?}");
            Err(Error::parameter("offsets", received, format!("0 to the number of tokens, {len}")))
        }
    }
}
