//! How a snapshot is mounted: by the kernel's overlayfs, or as a directory where it stands on nothing.

use std::path::Path;

use store::snapshots::{Kind, Stack};

use crate::containerd::types::Mount;

/// The mounts of a snapshot, as containerd makes them. `user` is whether overlayfs keeps its marks in `user.` attributes.
pub(crate) fn of(stack: &Stack, user: bool) -> Vec<Mount> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bind = |path: &Path, writable: bool| {
        let how = if writable { "rw" } else { "ro" };
        vec![Mount {
            r#type: "bind".to_owned(),
            source: text(path),
            options: vec![how.to_owned(), "rbind".to_owned()],
            ..Mount::default()
        }]
    };
    let writable = stack.kind == Kind::Active;
    match (stack.lowers.as_slice(), writable) {
        ([], _) => return bind(&stack.upper, writable),
        ([only], false) => return bind(only, false),
        _ => {}
    }
    let mut options = vec!["index=off".to_owned()];
    if user {
        options.push("userxattr".to_owned());
    }
    if writable {
        options.push(format!("workdir={}", text(&stack.work)));
        options.push(format!("upperdir={}", text(&stack.upper)));
    }
    let lowers: Vec<_> = stack.lowers.iter().map(|lower| text(lower)).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    let (r#type, source) = ("overlay".to_owned(), "overlay".to_owned());
    vec![Mount { r#type, source, options, ..Mount::default() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_what_containerd_expects() {
        let stack = |kind, lowers: &[&str]| Stack {
            kind,
            upper: "/s/9/fs".into(),
            work: "/s/9/work".into(),
            lowers: lowers.iter().map(Into::into).collect(),
        };
        let cases = [
            (stack(Kind::Active, &[]), "bind /s/9/fs rw,rbind"),
            (stack(Kind::View, &[]), "bind /s/9/fs ro,rbind"),
            (stack(Kind::View, &["/s/1/fs"]), "bind /s/1/fs ro,rbind"),
            (
                stack(Kind::View, &["/s/2/fs", "/s/1/fs"]),
                "overlay overlay index=off,lowerdir=/s/2/fs:/s/1/fs",
            ),
            (
                stack(Kind::Active, &["/s/1/fs"]),
                "overlay overlay index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs",
            ),
        ];
        for (stack, want) in cases {
            let [mount] = &of(&stack, false)[..] else { panic!("one mount") };
            let is = format!("{} {} {}", mount.r#type, mount.source, mount.options.join(","));
            assert_eq!(is, want);
        }
    }
}
