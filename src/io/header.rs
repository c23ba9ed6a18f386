//! The header of a safetensors file, checked before the format's library reads it.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeSet;

/// The part of a tensor's entry that is checked here.
#[derive(Deserialize)]
struct Entry {
    data_offsets: (u64, u64),
}

struct Names {
    data_len: u64,
}

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let error = |text: String| Err(serde::de::Error::custom(text));
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<serde::de::IgnoredAny>()?;
            } else {
                let Entry { data_offsets: (start, end) } = map.next_value()?;
                if start > end || end > self.data_len {
                    return error(format!(
                        "tensor `{name}` claims bytes {start}..{end} of {}",
                        self.data_len
                    ));
                }
            }
            if let Some(name) = seen.replace(name) {
                return error(format!("`{name}` is there twice"));
            }
        }
        Ok(())
    }
}

/// Refuses what the format forbids but its library lets pass or overflows on: repeated names, offsets beyond the end.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a safetensors header", bytes.len()));
    };
    let len = u64::from_le_bytes(*len);
    let header = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
    let Some((header, data)) = header else {
        return Err(format!("truncated: the header claims {len} bytes, {} follow", rest.len()));
    };
    let mut json = serde_json::Deserializer::from_slice(header);
    json.deserialize_map(Names { data_len: data.len() as u64 }).map_err(|e| format!("malformed header: {e}"))
}
