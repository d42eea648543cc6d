use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::Namespace;

/// What a layer is told to have at a path: a file of so many bytes, a directory, an opaque one, or a whiteout.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Has {
    File(u16),
    Dir,
    Opaque,
    Gone,
}

type Names = BTreeMap<PathBuf, Has>;

fn write(root: &Path, names: &Names) -> Layer {
    fs::create_dir(root).expect("a directory");
    for (path, has) in names {
        let at = root.join(path);
        match has {
            Has::File(bytes) => fs::write(at, vec![b'x'; (*bytes).into()]).expect("a file"),
            Has::Dir | Has::Opaque => fs::create_dir(&at).expect("a directory"),
            Has::Gone => {
                let mark = crate::mark::aufs_whiteout(at.file_name().expect("a name"));
                fs::write(at.with_file_name(mark), "").expect("a whiteout");
            }
        }
        if *has == Has::Opaque {
            fs::write(root.join(path).join(crate::mark::AUFS_OPAQUE), "").expect("a mark");
        }
    }
    Layer::open(root, Namespace::User).expect("a layer")
}

fn account(stack: &[Names]) -> Account {
    let temp = tempfile::tempdir().expect("a directory");
    let each = stack.iter().enumerate();
    let layers: Vec<Layer> =
        each.map(|(index, names)| write(&temp.path().join(index.to_string()), names)).collect();
    Account::of(&layers).expect("an account")
}

fn names(all: &[(&str, Has)]) -> Names {
    all.iter().map(|(path, has)| (path.into(), *has)).collect()
}

fn lines(items: &[Item]) -> Vec<String> {
    let each = items.iter().enumerate();
    each.map(|(id, item)| {
        let (at, by) =
            (path(items, id), item.hidden_by.map_or("-".to_owned(), |by| by.to_string()));
        let Item { change, layer, bytes, hides, wasted, .. } = item;
        format!("/{} {change:?} of {layer} by {by}: {bytes} {hides} {wasted}", at.display())
    })
    .collect()
}

#[test]
fn each_layer_is_seen_from_below_and_from_above() {
    use Has::{Dir, File, Gone, Opaque};
    let stack = [
        names(&[
            ("etc", Dir),
            ("etc/a", File(1)),
            ("etc/b", File(2)),
            ("tree", Dir),
            ("tree/x", File(4)),
        ]),
        names(&[
            ("etc", Dir),
            ("etc/b", File(8)),
            ("etc/c", File(16)),
            ("none", Gone),
            ("tmp", File(32)),
        ]),
        names(&[
            ("etc", Dir),
            ("etc/a", Gone),
            ("tmp", Gone),
            ("tree", Opaque),
            ("tree/y", File(64)),
        ]),
    ];
    let account = account(&stack);
    assert_eq!(
        lines(&account.layers[0].items),
        [
            "/ Added of 0 by -: 7 0 7",
            "/etc Added of 0 by -: 3 0 3",
            "/tree Added of 0 by -: 4 0 4",
            "/etc/a Added of 0 by 2: 1 0 1",
            "/etc/b Added of 0 by 1: 2 0 2",
            "/tree/x Added of 0 by 2: 4 0 4",
        ]
    );
    assert_eq!(
        lines(&account.layers[1].items),
        [
            "/ Changed of 1 by -: 56 2 32",
            "/etc Changed of 1 by -: 24 2 0",
            "/none DeletedNothing of 1 by -: 0 0 0",
            "/tmp Added of 1 by 2: 32 0 32",
            "/etc/b Changed of 1 by -: 8 2 0",
            "/etc/c Added of 1 by -: 16 0 0",
        ]
    );
    let top = &account.layers[2];
    assert_eq!(
        lines(&top.items),
        [
            "/ Changed of 2 by -: 64 37 0",
            "/etc Changed of 2 by -: 0 1 0",
            "/tmp Deleted of 2 by -: 0 32 0",
            "/tree Changed of 2 by -: 64 4 0",
            "/etc/a Deleted of 2 by -: 0 1 0",
            "/tree/y Added of 2 by -: 64 0 0",
        ]
    );
    assert_eq!(top.added, Count { names: 1, bytes: 64 });
    assert_eq!(top.deleted, Count { names: 2, bytes: 37 });
    assert_eq!(top.hides, Count { names: 3, bytes: 37 });
    assert_eq!(account.layers[1].wasted, Count { names: 1, bytes: 32 });
    assert_eq!(account.layers[1].deleted_nothing, 1);
    let mut merged = lines(&account.merged);
    merged.sort();
    assert_eq!(
        merged,
        [
            "/ Kept of 2 by -: 88 0 39",
            "/etc Kept of 2 by -: 24 0 3",
            "/etc/a Deleted of 0 by 2: 0 0 1",
            "/etc/b Changed of 1 by -: 8 0 2",
            "/etc/c Added of 1 by -: 16 0 0",
            "/tmp Deleted of 1 by 2: 0 0 32",
            "/tree Kept of 2 by -: 64 0 4",
            "/tree/x Deleted of 0 by 2: 0 0 4",
            "/tree/y Added of 2 by -: 64 0 0",
        ]
    );
}

#[test]
fn what_comes_back_hides_nothing_and_a_file_in_the_place_of_a_directory_hides_all_of_it() {
    use Has::{Dir, File, Gone};
    let stack = [
        names(&[("d", Dir), ("d/e", Dir), ("d/e/f", File(1))]),
        names(&[("d", Gone)]),
        names(&[("d", Dir), ("d/e", Dir), ("d/e/f", File(2))]),
        names(&[("d", File(4))]),
    ];
    let account = account(&stack);
    let hides: Vec<u64> = account.layers.iter().map(|layer| layer.items[0].hides).collect();
    assert_eq!(hides, [0, 1, 0, 2]);
    assert_eq!(account.layers[2].added, Count { names: 3, bytes: 2 });
    assert_eq!(account.layers[0].items[3].hidden_by, Some(1));
    assert_eq!(account.layers[2].items[1].hidden_by, Some(3));
    assert_eq!(
        (account.merged[0].bytes, account.merged[0].names, account.merged[0].wasted),
        (4, 2, 3)
    );
}

#[test]
fn a_file_with_two_names_counts_under_the_one_that_shows() {
    let temp = tempfile::tempdir().expect("a directory");
    let at = |path: &str| temp.path().join(path);
    fs::create_dir_all(at("0")).expect("a directory");
    fs::create_dir_all(at("1")).expect("a directory");
    fs::write(at("0/a"), "12345").expect("a file");
    fs::hard_link(at("0/a"), at("0/b")).expect("a link");
    fs::write(at("1/.wh.a"), "").expect("a whiteout");
    let layers = ["0", "1"].map(|name| Layer::open(&at(name), Namespace::User).expect("a layer"));
    let account = Account::of(&layers).expect("an account");
    let below = &account.layers[0];
    assert_eq!((below.bytes(), below.items[0].wasted), (5, 0));
    assert!(below.items[1].linked && !below.items[2].linked);
    assert_eq!((account.merged[0].bytes, account.merged[0].wasted), (5, 0));
}

#[test]
fn no_layers_are_an_empty_root() {
    let account = Account::of(&[]).expect("an account");
    assert_eq!((account.layers.len(), account.merged.len(), account.merged[0].bytes), (0, 1, 0));
}

/// A layer of up to 12 paths; what is in a name that is no directory is left out.
fn a_layer() -> impl Strategy<Value = Names> {
    let part = prop::sample::select(vec!["a", "b", "c"]);
    let has = prop_oneof![
        4 => (1_u16..100).prop_map(Has::File),
        2 => Just(Has::Dir),
        1 => Just(Has::Opaque),
        2 => Just(Has::Gone),
    ];
    prop::collection::vec((prop::collection::vec(part, 1..4), has), 0..12).prop_map(|wanted| {
        let mut names = Names::new();
        for (parts, has) in wanted {
            let path: PathBuf = parts.iter().collect();
            let mut above = path.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty());
            if above.all(|a| matches!(names.get(a), None | Some(Has::Dir | Has::Opaque))) {
                for above in path.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()) {
                    names.entry(above.to_owned()).or_insert(Has::Dir);
                }
                names.entry(path).or_insert(has);
            }
        }
        names
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against a flat map of paths, from which each layer takes all that begins with what it hides.
    #[test]
    fn what_shows_and_what_is_wasted_are_those_of_a_flat_map(
        stack in prop::collection::vec(a_layer(), 1..5),
    ) {
        let mut shown: BTreeMap<PathBuf, (usize, Has)> = BTreeMap::new();
        let mut wasted = vec![0_u64; stack.len()];
        let mut hides = vec![0_u64; stack.len()];
        for (layer, names) in stack.iter().enumerate() {
            let before = shown.clone();
            for (path, has) in names {
                let merges = matches!(has, Has::Dir | Has::Opaque)
                    && before.get(path).is_some_and(|(_, old)| !matches!(old, Has::File(_)));
                shown.retain(|old, (of, what)| {
                    let inside = old.starts_with(path) && old != path && (!merges || *has == Has::Opaque);
                    let goes = *of < layer && (inside || old == path && !merges);
                    if let (true, Has::File(bytes)) = (goes, *what) {
                        wasted[*of] += u64::from(bytes);
                        hides[layer] += u64::from(bytes);
                    }
                    !goes
                });
                if *has != Has::Gone {
                    shown.insert(path.clone(), (layer, *has));
                }
            }
        }
        let account = account(&stack);
        let of = |what: fn(&Item) -> u64| -> Vec<u64> {
            account.layers.iter().map(|layer| what(&layer.items[0])).collect()
        };
        prop_assert_eq!(of(|root| root.wasted), wasted.clone());
        prop_assert_eq!(of(|root| root.hides), hides);
        prop_assert_eq!(account.merged[0].wasted, wasted.iter().sum::<u64>());
        let got: BTreeMap<PathBuf, usize> = account.merged.iter().enumerate().skip(1)
            .filter(|(_, item)| item.change != Change::Deleted)
            .map(|(id, item)| (path(&account.merged, id), item.layer))
            .collect();
        let want: BTreeMap<PathBuf, usize> =
            shown.iter().map(|(path, (layer, _))| (path.clone(), *layer)).collect();
        prop_assert_eq!(got, want);
        let counted: u64 = account.layers.iter().map(|layer| layer.wasted.bytes).sum();
        prop_assert_eq!(counted, account.merged[0].wasted);
    }
}
