//! Folds what each layer says about one name into what the union shows.
//!
//! Pure: callers probe the layers, uppermost first; nothing here touches a disk.
//!
//! 1. The first layer that has the name decides whether it is a directory.
//! 2. A whiteout ends the search.
//! 3. Directories merge downwards until a whiteout, a leaf or an opaque one.
//!
//! Source: kernel `Documentation/filesystems/overlayfs.rst`, "Whiteouts and opaque directories".

use layer::Kind;

/// A layer's place in the stack; 0 is the uppermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(pub u16);

/// What the union shows under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Something that is no directory, from this layer alone.
    Leaf(LayerIndex),
    /// A directory, merged from these layers, uppermost first.
    Dir(Vec<LayerIndex>),
}

/// Folds `probes`, uppermost first, into what is shown; none where the name does not exist.
///
/// Lazy: no layer is asked that an upper one hides, so a file in the upper costs one probe.
///
/// # Errors
/// The first error of a probe: a layer that can't be read never counts as one without the name.
pub fn resolve<E>(
    probes: impl IntoIterator<Item = Result<(LayerIndex, Kind), E>>,
) -> Result<Option<Found>, E> {
    let mut merged = Vec::new();
    for probe in probes {
        let (layer, kind) = probe?;
        match kind {
            Kind::Absent => {}
            Kind::Leaf if merged.is_empty() => return Ok(Some(Found::Leaf(layer))),
            Kind::Leaf | Kind::Whiteout => break,
            Kind::Dir { opaque } => {
                merged.push(layer);
                if opaque {
                    break;
                }
            }
        }
    }
    Ok((!merged.is_empty()).then_some(Found::Dir(merged)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Absent, Leaf, Whiteout};

    const DIR: Kind = Kind::Dir { opaque: false };
    const OPAQUE: Kind = Kind::Dir { opaque: true };

    fn answers(kinds: &[Kind]) -> impl Iterator<Item = Result<(LayerIndex, Kind), &'static str>> {
        kinds.iter().zip(0..).map(|(kind, index)| Ok((LayerIndex(index), *kind)))
    }

    fn leaf(index: u16) -> Option<Found> {
        Some(Found::Leaf(LayerIndex(index)))
    }

    fn dir(indices: &[u16]) -> Option<Found> {
        Some(Found::Dir(indices.iter().copied().map(LayerIndex).collect()))
    }

    #[test]
    fn a_whiteout_a_leaf_or_an_opaque_directory_hides_every_layer_below() {
        let cases: [(&[Kind], Option<Found>); 11] = [
            (&[], None),
            (&[Absent, Absent], None),
            (&[Leaf, DIR], leaf(0)),
            (&[Absent, Leaf, DIR], leaf(1)),
            (&[Whiteout, Leaf], None),
            (&[Whiteout, DIR], None),
            (&[DIR, Absent, DIR], dir(&[0, 2])),
            (&[DIR, Leaf, DIR], dir(&[0])),
            (&[DIR, Whiteout, DIR], dir(&[0])),
            (&[DIR, OPAQUE, DIR], dir(&[0, 1])),
            (&[OPAQUE, DIR], dir(&[0])),
        ];
        for (layers, shown) in cases {
            assert_eq!(resolve(answers(layers)), Ok(shown), "uppermost first: {layers:?}");
        }
    }

    #[test]
    fn an_error_is_an_error_unless_an_upper_layer_hides_it() {
        let failing = |first| [Ok((LayerIndex(0), first)), Err("EIO")];
        assert_eq!(resolve(failing(Leaf)), Ok(leaf(0)));
        assert_eq!(resolve(failing(Whiteout)), Ok(None));
        assert_eq!(resolve(failing(OPAQUE)), Ok(dir(&[0])));
        assert_eq!(resolve(failing(Absent)), Err("EIO"));
        assert_eq!(resolve(failing(DIR)), Err("EIO"));
    }
}
