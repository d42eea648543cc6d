//! What lists and shows containers, as scripts ask for it; and files that come and go as a tar.

mod scene;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use scene::Scene;

#[test]
fn containers_are_listed_by_what_they_are() {
    let Some(scene) = Scene::new() else { return };
    scene.good(&["create", "--name", "made", "-l", "team=web", "-l", "x", "base"]);
    scene.run(&["run", "--name", "failed", "-l", "team=db", "base", "sh", "-c", "exit 3"]);
    scene.good(&[
        "run", "-d", "--name", "runs", "-l", "team=web", "-v", "data:/d", "base", "sleep", "60",
    ]);
    let names = |flags: &[&str]| {
        let listed = scene.good(&[&["ps", "--format", "{{.Names}}"], flags].concat());
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    for (flags, want) in [
        (&[][..], &["runs"][..]),
        (&["-a"], &["runs", "failed", "made"]),
        (&["-n", "2"], &["runs", "failed"]),
        (&["-l", "-f", "name=fail"], &["failed"]),
        (&["-a", "-f", "label=team=web"], &["runs", "made"]),
        (&["-a", "-f", "label=team=web", "-f", "label=x"], &["made"]),
        (&["-f", "status=exited", "-f", "status=created"], &["failed", "made"]),
        (&["-f", "exited=3"], &["failed"]),
        (&["-f", "exited=4"], &none),
        (&["-a", "-f", "name=runs", "-f", "name=made"], &["runs", "made"]),
        (&["-a", "-f", "ancestor=base", "-f", "volume=data"], &["runs"]),
    ] {
        assert_eq!(names(flags), want, "{flags:?}");
    }
    for (flags, want) in [
        (["--filter", "colour=red"], "there are name, id, status"),
        (["--filter", "status=paused"], "there are created, running"),
        (["--filter", "ancestor=nonesuch"], "no image"),
        (["--format", "{{range .}}"], "--json | jq"),
        (["--format", "{{.Nonesuch}}"], "there are command, created"),
    ] {
        let said = scene.bad(&[&["ps", "-a"], &flags[..]].concat());
        assert!(said.contains(want), "{flags:?}: {said}");
    }
    let id = scene.good(&["ps", "-q", "--no-trunc"]);
    assert_eq!(id.trim().len(), 64);
    let line = scene.good(&["ps", "-f", &format!("id={}", &id[..8]), "--format", "json"]);
    let line: serde_json::Value = serde_json::from_str(&line).expect("an object a line");
    assert_eq!((&line["state"], &line["mounts"]), (&"running".into(), &"data".into()));
    let table =
        scene.good(&["ps", "-a", "--format", r"table {{.ExitCode}}\t{{.Names}}\t{{.Labels}}"]);
    assert!(table.starts_with("EXITCODE  NAMES   LABELS\n"), "{table}");
    assert!(table.contains("3         failed  team=db\n"), "{table}");

    let asked = |template: &str, name: &str| scene.good(&["inspect", "-f", template, name]);
    let pid = asked("{{.State.Pid}}", "runs");
    assert!(fs::exists(format!("/proc/{}", pid.trim())).expect("known"), "{pid}");
    let state = "{{.State.Running}} {{.State.Status}} {{.State.ExitCode}}";
    assert_eq!(asked(state, "failed"), "false exited 3\n");
    assert_eq!(asked("{{json .Config.Labels}}", "made"), "{\"team\":\"web\",\"x\":\"\"}\n");
    let said = scene.bad(&["inspect", "-f", "{{.State.Mood}}", "made"]);
    assert!(said.contains("no field \"Mood\""), "{said}");
    scene.good(&["rm", "-f", "runs"]);
}

#[test]
fn files_come_and_go_as_a_tar() {
    let Some(scene) = Scene::new() else { return };
    scene.good(&["create", "--name", "box", "base"]);
    scene.good(&["run", "-d", "--name", "runs", "base", "sleep", "60"]);
    let send = |tar: &[u8], args: &[&str]| {
        let mut child = scene
            .command(args)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        child.stdin.take().expect("stdin").write_all(tar).expect("written");
        child.wait_with_output().expect("ends")
    };
    for name in ["box", "runs"] {
        let out = scene.run(&["cp", &format!("{name}:/etc/app"), "-"]);
        assert!(out.status.success());
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("app/conf") && text.contains("app/doomed"));
        // Under another directory, with what is there already.
        let sent = send(&out.stdout, &["cp", "-", &format!("{name}:/")]);
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        let back = scene.temp.path().join(format!("back-{name}"));
        fs::create_dir(&back).expect("a directory");
        let to = back.to_str().expect("text");
        scene.good(&["cp", &format!("{name}:/app/."), to]);
        assert_eq!(fs::read_to_string(back.join("conf")).expect("a file"), "old\n");
        scene.good(&["cp", &format!("{name}:/etc/motd"), to]);
        // The content of a directory, and one file.
        let content = scene.run(&["cp", &format!("{name}:/etc/app/."), "-"]).stdout;
        let content = String::from_utf8_lossy(&content);
        assert!(content.contains("conf\0") && !content.contains("app/"));
        let file = scene.run(&["cp", &format!("{name}:/etc/motd"), "-"]).stdout;
        let file = String::from_utf8_lossy(&file);
        assert!(file.contains("motd\0") && file.contains("hello\n"));
        for (tar, to, want) in [
            (&b"no tar at all"[..], "/", "unpacking failed"),
            (&out.stdout, "/etc/motd", "unpack into"),
            (&out.stdout, "/none/such", "find in the container"),
        ] {
            let sent = send(tar, &["cp", "-", &format!("{name}:{to}")]);
            let said = String::from_utf8_lossy(&sent.stderr);
            assert!(!sent.status.success() && said.contains(want), "{to}: {said}");
        }
    }
    assert_eq!(scene.good(&["diff", "box"]), "A /app\nA /app/conf\nA /app/doomed\n");
    let all = scene.directories();
    let names = all.iter().flat_map(|dir| fs::read_dir(dir).expect("a list"));
    let mut names = names.map(|entry| entry.expect("an entry").file_name());
    assert!(names.all(|name| !name.to_string_lossy().starts_with(".tmp")), "a stage is left");
    scene.good(&["rm", "-f", "runs"]);
}
