//! The flags of `run` and `create`, which mean what they mean in Docker.

mod scene;

use std::fs;

use scene::Scene;

#[test]
fn flags_mean_what_they_mean_in_docker() {
    let Some(scene) = Scene::new() else { return };
    let at = |path: &str| scene.temp.path().join(path).to_str().expect("text").to_owned();
    fs::write(at("vars"), "# a remark\nA=file\n\nB=file\n").expect("a file");
    fs::create_dir(at("shared")).expect("a directory");
    fs::write(at("shared/x"), "shared\n").expect("a file");
    let seen =
        scene.sh(&["--env-file", &at("vars"), "-e", "B=flag", "-h", "me"], "echo $A $B $HOSTNAME");
    assert_eq!(seen, "file flag me\n");
    let effective = |status: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line");
        u64::from_str_radix(line.trim(), 16).expect("bits")
    };
    let caps = |flags: &[&str]| effective(&scene.sh(flags, "cat /proc/self/status"));
    let own = effective(&fs::read_to_string("/proc/self/status").expect("our status"));
    let default = caps(&[]);
    assert_eq!(default & 1 << 27, 0, "devices of this machine are not to be made");
    assert_eq!(caps(&["--cap-add", "sys_admin"]), default | 1 << 21);
    assert_eq!(caps(&["--cap-drop", "CAP_CHOWN,kill"]), default & !(1 | 1 << 5));
    assert_eq!(caps(&["--cap-drop", "ALL"]), 0);
    assert_eq!(caps(&["--privileged"]), own, "all that we have ourselves");
    assert_eq!(scene.sh(&["--privileged"], "test -w /proc/sys/kernel/hostname; echo $?"), "0\n");
    assert_eq!(scene.sh(&["--ulimit", "nofile=100:200"], "ulimit -Sn; ulimit -Hn"), "100\n200\n");
    let bind = format!("type=bind,source={},target=/a/b,readonly", at("shared"));
    let script = "cat /a/b/x; echo t > /a/t; ! echo no > /a/b/y; cat /proc/mounts";
    let seen = scene.sh(&["--mount", &bind, "--tmpfs", "/a:size=1m,mode=700"], script);
    assert!(seen.starts_with("shared\n"), "{seen}");
    let memory = seen.lines().find(|line| line.starts_with("tmpfs /a ")).expect("a tmpfs");
    assert!(memory.contains("size=1024k") && memory.contains("noexec"), "{memory}");
    let shm = scene.sh(&["--shm-size", "1m"], "cat /proc/mounts");
    assert!(shm.lines().any(|line| line.contains("/dev/shm") && line.contains("size=1024k")));
    assert_eq!(
        scene.sh(&["-u", "web:logs", "--group-add", "5"], "id -u; id -g; id -G"),
        "33\n4\n4 5\n"
    );
    assert_eq!(scene.sh(&["-w", "/made/for/it"], "pwd"), "/made/for/it\n");
    let status = |flags: &[&str]| scene.sh(flags, "cat /proc/self/status");
    assert!(status(&["--security-opt", "no-new-privileges"]).contains("NoNewPrivs:\t1"));
    assert!(status(&[]).contains("NoNewPrivs:\t0"));
    let links = |flags: &[&str]| scene.sh(flags, "cat /proc/net/dev").lines().count();
    assert_eq!(links(&["--network", "none"]), 3, "two lines of heading, and lo");
    scene.good(&[
        "create",
        "--name",
        "box",
        "--cidfile",
        &at("id"),
        "-l",
        "a=b",
        "--label",
        "c",
        "base",
    ]);
    let known: serde_json::Value =
        serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
    assert_eq!(known["id"], fs::read_to_string(at("id")).expect("the id"));
    assert_eq!(known["config"]["labels"], serde_json::json!({ "a": "b", "c": "" }));
    for (flags, want) in [
        (["--cidfile", &at("id")], "for the id"),
        (["--cap-add", "fly"], "no capability \"fly\""),
        (["--ulimit", "files=1"], "no limit \"files\""),
        (["--mount", "src=/v,dst=/x"], "a path is type=bind"),
        (["-p", "80:80"], "the network is the machine's"),
        (["--group-add", "nobody"], "no group \"nobody\""),
        (["--security-opt", "fast"], "no security option"),
        (["--hostnam", "x"], "--hostname"),
    ] {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        let said = scene.bad(&[&args[..], &["base"]].concat());
        assert!(said.contains(want), "{flags:?}: {said}");
    }
    scene.good(&["rm", "box"]);
    assert!(scene.directories().is_empty());
}
