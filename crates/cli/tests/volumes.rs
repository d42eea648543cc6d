//! Volumes that nobody names: those of the image, and of `-v /DIR`. And what runs in a container beside its command.

mod scene;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use scene::Scene;

fn volumes(scene: &Scene) -> Vec<String> {
    let listed = scene.good(&["volume", "ls", "--quiet"]);
    listed.lines().map(str::to_owned).collect()
}

/// Where the volume of the container `name` is at `destination`.
fn source(scene: &Scene, name: &str, destination: &str) -> PathBuf {
    let known: serde_json::Value =
        serde_json::from_str(&scene.good(&["inspect", name])).expect("JSON");
    let all = known["config"]["volumes"].as_array().expect("a list").clone();
    let found = all.iter().find(|volume| volume["destination"] == destination);
    found.expect("the volume")["source"].as_str().expect("a path").into()
}

#[test]
fn volumes_of_the_image_are_made_and_go_as_with_docker() {
    let Some(scene) = Scene::new() else { return };
    scene.good(&["create", "--name", "made", "base"]);
    let changes = ["-c", "VOLUME /etc/app /var/data", "-c", "LABEL from=image a=image"];
    let made = scene.good(&[&["commit"], &changes[..], &["made", "voluminous"]].concat());
    assert!(made.starts_with("sha256:"), "{made}");
    scene.good(&["rm", "made"]);

    // Each container has its own, which begins as the image has it.
    let change = "cat /etc/app/conf; echo new > /etc/app/conf; echo x > /var/data/x";
    for name in ["one", "two"] {
        let run = ["run", "--name", name, "-l", "a=own", "voluminous", "sh", "-ec", change];
        assert_eq!(scene.good(&run), "old\n");
        let diff = scene.good(&["diff", name]);
        assert!(!diff.contains("conf"), "it is not in the writable layer: {diff}");
    }
    let (one, two) = (source(&scene, "one", "/etc/app"), source(&scene, "two", "/etc/app"));
    assert_ne!(one, two);
    assert_eq!(fs::read_to_string(one.join("conf")).expect("a file"), "new\n");
    let known: serde_json::Value =
        serde_json::from_str(&scene.good(&["inspect", "one"])).expect("JSON");
    let labels = serde_json::json!({ "from": "image", "a": "own" });
    assert_eq!(known["config"]["labels"], labels);
    assert_eq!(volumes(&scene).len(), 4);
    // A start goes on with it; a removal leaves it, unless it is asked for.
    assert_eq!(scene.good(&["start", "-a", "one"]), "new\n");
    scene.good(&["rm", "one"]);
    assert_eq!(volumes(&scene).len(), 4);
    scene.good(&["rm", "-v", "two"]);
    assert!(!two.exists() && one.exists());
    assert_eq!(scene.good(&["volume", "prune"]).lines().count(), 2);

    // One that is to go takes them along, but for what another one has, and what has a name.
    scene.good(&["create", "--name", "keeper", "voluminous"]);
    let kept = source(&scene, "keeper", "/var/data");
    let name = kept.parent().and_then(|dir| dir.file_name()).expect("a name");
    let shared = format!("{}:/shared", name.to_str().expect("text"));
    scene.good(&["run", "--rm", "-v", &shared, "-v", "named:/n", "-v", "/un", "voluminous"]);
    assert_eq!(volumes(&scene).len(), 3);
    assert!(kept.exists() && volumes(&scene).contains(&"named".to_owned()));
    scene.good(&["rm", "-v", "keeper"]);
    assert_eq!(volumes(&scene), ["named"]);

    // Where the caller has something else at the place, or wants none.
    let seen = |flags: &[&str]| {
        let script = "cat /proc/mounts";
        let words = [&["run", "--rm"], flags, &["voluminous", "sh", "-c", script]].concat();
        let mounts = scene.good(&words);
        mounts.lines().filter(|line| line.contains(" /etc/app ")).map(str::to_owned).collect()
    };
    let tmpfs: Vec<String> = seen(&["--tmpfs", "/etc/app"]);
    assert!(tmpfs.len() == 1 && tmpfs[0].starts_with("tmpfs "), "{tmpfs:?}");
    let tmpfs: Vec<String> = seen(&["--image-volume", "tmpfs"]);
    assert!(tmpfs.len() == 1 && tmpfs[0].starts_with("tmpfs "), "{tmpfs:?}");
    assert!(seen(&["--image-volume", "ignore"]).is_empty());
    assert_eq!(volumes(&scene), ["named"]);
}

#[test]
fn what_is_executed_detached_goes_on_and_ends_with_the_container() {
    let Some(scene) = Scene::new() else { return };
    scene.good(&["run", "-d", "--name", "box", "base", "sleep", "60"]);
    let begun = Instant::now();
    let script = "echo here > /srv-said; sleep 50; echo late";
    assert_eq!(scene.good(&["exec", "-d", "-e", "X=1", "box", "sh", "-c", script]), "");
    assert!(begun.elapsed() < Duration::from_secs(40), "it waits");
    let until = Instant::now() + Duration::from_secs(20);
    while scene.run(&["exec", "box", "cat", "/srv-said"]).stdout != b"here\n" {
        assert!(Instant::now() < until, "nothing ran");
    }
    let said = scene.bad(&["exec", "-d", "box", "nonesuch"]);
    assert!(said.contains("in no directory of the container's PATH"), "{said}");
    assert!(scene.bad(&["exec", "-d", "-t", "box", "sh"]).contains("cannot be used with"));
    scene.good(&["rm", "-f", "box"]);
    assert_eq!(scene.status("box"), "none");
}

#[test]
fn a_container_has_the_time_to_end_that_it_was_given() {
    let Some(scene) = Scene::new() else { return };
    let deaf = "trap '' TERM; echo deaf > /said; while :; do sleep 1; done";
    let run = ["run", "-d", "--name", "box", "--stop-timeout", "0", "base", "sh", "-c", deaf];
    scene.good(&run);
    let until = Instant::now() + Duration::from_secs(20);
    while scene.run(&["exec", "box", "cat", "/said"]).stdout != b"deaf\n" {
        assert!(Instant::now() < until, "nothing ran");
    }
    scene.good(&["stop", "box"]);
    let known: serde_json::Value =
        serde_json::from_str(&scene.good(&["inspect", "box"])).expect("JSON");
    assert_eq!(known["state"]["exit_code"], 137);
    assert_eq!(known["config"]["stop_timeout"], 0);
}
