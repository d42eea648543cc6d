//! Names that are hashes: of a blob, of a layer's tar, of a chain of layers.
//!
//! Source: OCI image specification, "Digests", "Layer DiffID", "Layer ChainID".

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// A SHA-256 digest, `sha256:` and 64 lower-case hex digits. No other algorithm, and no other
/// spelling, ever becomes part of a path or an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest that a hash has come to.
    pub fn finish(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadDigest { text: text.chars().take(100).collect() };
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?;
        let lower = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mut bytes = [0; 32];
        if !lower || hex::decode_to_slice(hex, &mut bytes).is_err() {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a chain of layers, lowest first: of everything that they show together.
pub fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let (first, rest) = diff_ids.split_first()?;
    Some(rest.iter().fold(*first, |chain, next| on_chain(Some(&chain), next)))
}

/// The name of a chain with one layer more on top.
pub(crate) fn on_chain(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    below.map_or(*diff_id, |chain| Digest::of(format!("{chain} {diff_id}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn only_the_one_spelling_is_a_digest() {
        let digest = format!("sha256:{ZERO}");
        assert_eq!(digest.parse::<Digest>().expect("a digest").to_string(), digest);
        let upper = format!("sha256:{}", ZERO.replace('0', "A"));
        let short = format!("sha256:{}", &ZERO[1..]);
        let path = format!("sha256:../../{}", &ZERO[6..]);
        for bad in [
            "",
            "sha256:",
            &upper,
            &short,
            &path,
            &format!("sha512:{ZERO}"),
            &format!("{digest}0"),
            ZERO,
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_chain_of_one_is_its_layer_and_every_layer_counts() {
        let [a, b] = ["a", "b"].map(|text| Digest::of(text.as_bytes()));
        assert_eq!(chain_id(&[]), None);
        assert_eq!(chain_id(&[a]), Some(a));
        assert_eq!(chain_id(&[a, b]), Some(Digest::of(format!("{a} {b}").as_bytes())));
        assert_ne!(chain_id(&[a, b]), chain_id(&[b, a]));
    }
}
