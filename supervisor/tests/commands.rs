//! What the showing commands print, for people and for programs. The JSON forms are a promise: fields may be added.

use delugefs_proto::disk::{DiskToml, short_id};
use serde_json::Value;

use crate::lab::{Lab, Said};

/// A host with one disk and one mount, and a function that replaces what is drawn at random.
fn host() -> (Lab, impl Fn(&Lab, &[&str]) -> Said) {
    let mut lab = Lab::new();
    lab.run(&["--create", "--mount", "m"]);
    let status = lab.status();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let disk_id = text(&status["disks"][0]["disk_id"]);
    let mut replaced = vec![
        (disk_id.clone(), "DISK-ID".to_string()),
        (disk_id[..8].to_string(), "12345678".into()),
        (text(&status["cluster_id"]), "CLUSTER-ID".into()),
    ];
    for process in [&status, &status["disks"][0], &status["mounts"][0]] {
        replaced.push((format!("pid {}", process["pid"]), "pid PID".into()));
        replaced.push((format!("\"pid\": {}", process["pid"]), "\"pid\": 42".into()));
    }
    let says = move |lab: &Lab, arguments: &[&str]| {
        let mut said = lab.says(arguments);
        for (from, to) in &replaced {
            said.stdout = said.stdout.replace(from, to);
        }
        said
    };
    (lab, says)
}

#[test]
fn status() {
    let (lab, says) = host();
    let said = says(&lab, &["status"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(said.stdout, @"
    cluster home, supervisor 0.1.0 (pid PID)

    DISK      STATE    FREE      OF  RESTARTS  FOLDER
    12345678  up     12 GiB  20 GiB         0  LAB/a

    MOUNT  RESTARTS  DISK      FOLDER
    up            0  12345678  LAB/m
    ");
    insta::assert_snapshot!(says(&lab, &["status", "--json"]).stdout, @r#"
    {
      "cluster": "home",
      "cluster_id": "CLUSTER-ID",
      "pid": 42,
      "version": "0.1.0",
      "disks": [
        {
          "root": "LAB/a",
          "disk_id": "DISK-ID",
          "state": "up",
          "pid": 42,
          "restarts": 0,
          "by_hand": false,
          "last_error": null,
          "worker": {
            "read_only": false,
            "reason": null,
            "total_bytes": 21474836480,
            "free_bytes": 12884901888,
            "contents": 321,
            "content_bytes": 7516192768,
            "staged_files": 1,
            "catalog_commit": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff",
            "uncommitted_changes": 2,
            "packs": 3,
            "sessions": 1
          },
          "drain": null
        }
      ],
      "mounts": [
        {
          "dir": "LAB/m",
          "root": "LAB/a",
          "state": "up",
          "pid": 42,
          "restarts": 0,
          "by_hand": false,
          "last_error": null
        }
      ],
      "problems": [],
      "replication": null
    }
    "#);
    assert_eq!(says(&lab, &["status", "-x"]).stdout, "");
    lab.manners("worker", "read-only");
    let said = says(&lab, &["status", "-x"]);
    assert_eq!(said.code, 20);
    insta::assert_snapshot!(said.stdout, @"disk 12345678 (LAB/a) is read-only: the disk is full");
    let said = says(&lab, &["status"]);
    assert_eq!(said.code, 0);
    insta::assert_snapshot!(said.stdout, @"
    cluster home, supervisor 0.1.0 (pid PID)

    DISK      STATE    FREE      OF  RESTARTS  FOLDER
    12345678  up     12 GiB  20 GiB         0  LAB/a

    MOUNT  RESTARTS  DISK      FOLDER
    up            0  12345678  LAB/m

    problems:
      disk 12345678 (LAB/a) is read-only: the disk is full
    ");
}

#[test]
fn disks() {
    let (lab, says) = host();
    insta::assert_snapshot!(says(&lab, &["disks"]).stdout, @"
    LAB/a
      disk        DISK-ID
      state       up, pid PID, 0 restarts
      space       12 GiB free of 20 GiB
      contents    321, 7.0 GiB
      unfinished  1 files being written
      catalog     c0ffeec0ffee, 2 changes in the journal, 3 packs
      frontends   1
    ");
    insta::assert_snapshot!(says(&lab, &["disks", "--json"]).stdout, @r#"
    [
      {
        "root": "LAB/a",
        "disk_id": "DISK-ID",
        "state": "up",
        "pid": 42,
        "restarts": 0,
        "by_hand": false,
        "last_error": null,
        "worker": {
          "read_only": false,
          "reason": null,
          "total_bytes": 21474836480,
          "free_bytes": 12884901888,
          "contents": 321,
          "content_bytes": 7516192768,
          "staged_files": 1,
          "catalog_commit": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff",
          "uncommitted_changes": 2,
          "packs": 3,
          "sessions": 1
        },
        "drain": null
      }
    ]
    "#);
}

#[test]
fn torrents() {
    let (lab, says) = host();
    insta::assert_snapshot!(says(&lab, &["torrents"]).stdout, @r"
    DISK      CONTENT              SIZE     HAVE  PEERS   DOWN/s  UP/s  STATE
    12345678  abababababababab  5.0 GiB  5.0 GiB      2  1.4 MiB   0 B  complete
    12345678  abababababababab  5.0 GiB  1.0 GiB      2  1.4 MiB   0 B  fetching
    12345678  abababababababab  5.0 GiB      0 B      2  1.4 MiB   0 B  broken\x1b[2J
    ");
    let json: Value = serde_json::from_str(&says(&lab, &["torrents", "--json"]).stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 3);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json[2]).unwrap(), @r#"
    {
      "content": "abababababababababababababababababababababababababababababababab",
      "disk_id": "DISK-ID",
      "down_bytes_per_s": 1500000,
      "error": "broken\u001b[2J",
      "have_bytes": 0,
      "info_hash": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
      "peers": 2,
      "seeding": false,
      "size_bytes": 5368709120,
      "up_bytes_per_s": 0
    }
    "#);
}

#[test]
fn whereis() {
    let (lab, says) = host();
    let said = says(&lab, &["whereis", "m/photos/a.jpg", "/note.txt", "m/evil\u{1b}[2J\u{202e}"]);
    assert_eq!(said.code, 1);
    insta::assert_snapshot!(said.stdout, @"
    m/photos/a.jpg
      place    whole, on a disk of this host
      size     12 MiB (12345678 bytes)
      content  abababababababababababababababababababababababababababababababab
      torrent  cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
      disk     12345678 (LAB/a)
      disk     ffffffff (away) (forgotten)
    /note.txt
      place    in the catalog, on every disk
      size     99 B (99 bytes)
      disk     12345678 (LAB/a)
    ");
    insta::assert_snapshot!(said.stderr, @r"
    delugefs: m/evil\x1b[2J\u{202e}: there is no file or folder /evil\x1b[2J\u{202e}
    Hint: name a file or folder below a mount of this host (`delugefs status` shows them), or from the root of the filesystem
    ");
    let said = says(&lab, &["whereis", "--json", "m/photos/a.jpg", "nothing"]);
    assert_eq!((said.code, said.stderr.as_str()), (1, ""));
    insta::assert_snapshot!(said.stdout, @r#"
    [
      {
        "path": "m/photos/a.jpg",
        "inode": "0000000000001234",
        "mode": 33188,
        "size_bytes": 12345678,
        "place": "store",
        "content": "abababababababababababababababababababababababababababababababab",
        "info_hash": "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd",
        "disk_ids": [
          "DISK-ID",
          "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        ],
        "away": [
          "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        ],
        "forgotten": [
          "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        ],
        "may_have": [],
        "error": null
      },
      {
        "path": "nothing",
        "inode": null,
        "mode": null,
        "size_bytes": null,
        "place": null,
        "content": null,
        "info_hash": null,
        "disk_ids": [],
        "away": [],
        "forgotten": [],
        "may_have": [],
        "error": "there is no file or folder nothing"
      }
    ]
    "#);
}

#[test]
fn whereis_and_copies_ask_a_disk_that_answers() {
    let (lab, says) = host();
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    insta::assert_snapshot!(says(&lab, &["copies", "m/films", "3"]).stdout, @"3 copies wanted (set for /films)");
    insta::assert_snapshot!(says(&lab, &["copies", "m/films", "inherit"]).stdout, @"2 copies wanted (the default)");
    let said = says(&lab, &["copies", "/nosuch", "2"]);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""));
    insta::assert_snapshot!(said.stderr, @"
    delugefs: there is no file or folder /nosuch
    Hint: name a file or folder below a mount of this host (`delugefs status` shows them), or from the root of the filesystem
    ");
    // The worker that is asked has it not, and yet it is on this host.
    insta::assert_snapshot!(says(&lab, &["whereis", "m/elsewhere"]).stdout, @"
    m/elsewhere
      place    whole, on a disk of this host
      size     99 B (99 bytes)
      disk     12345678 (LAB/a)
    ");
    // The first is full: it cannot note anything.
    lab.manners("worker", "refuses a");
    assert_eq!(says(&lab, &["copies", "m/films", "3"]).code, 0);
    assert_eq!(says(&lab, &["conflicts"]).stdout, "b\n");
    // It hangs.
    lab.manners("worker", "hangs a");
    assert_eq!(says(&lab, &["copies", "m/films", "3"]).code, 0);
    assert_eq!(says(&lab, &["whereis", "m/note.txt"]).code, 0);
    assert_eq!(says(&lab, &["conflicts"]).stdout, "b\n");
}

#[test]
fn more_copies_than_there_are_disks_are_wanted_with_a_note() {
    let (lab, says) = host();
    lab.manners("worker", "member");
    let copies = |number| {
        let said = says(&lab, &["copies", "m/films", number]);
        format!("{}{}exit {}", said.stdout, said.stderr, said.code)
    };
    insta::assert_snapshot!(copies("3"), @"
    3 copies wanted (set for /films)
    Note: there is only 1 disk that keeps copies: with fewer than 3 of them `status` counts all of it as short of copies
    exit 0
    ");
}

#[test]
fn a_disk_that_is_removed_while_it_is_being_emptied_says_how_far_it_was() {
    let (lab, _) = host();
    assert_eq!(lab.says(&["disk", "add", "b", "--create"]).code, 0);
    let id = DiskToml::read(&lab.path("b")).unwrap().disk_id;
    lab.manners("worker", "member\ndraining b");
    let said = lab.says(&["disk", "remove", "b"]);
    assert_eq!(said.code, 0, "{said:?}");
    insta::assert_snapshot!(said.stdout.replace(short_id(&id), "12345678"), @"disk 12345678 was being emptied, and is not done (nearly done: 1 files are being written there). What is on it stays; `delugefs disk add LAB/b` goes on with it");
    assert_eq!(lab.says(&["disk", "add", "b"]).code, 0);
    lab.manners("worker", "member");
    assert_eq!(lab.says(&["disk", "remove", "b"]).stdout, "");
}

#[test]
fn scrub() {
    let (lab, says) = host();
    let said = says(&lab, &["scrub"]);
    assert_eq!(said.code, 0);
    insta::assert_snapshot!(said.stdout, @"12345678 (LAB/a): 5 entries, 6 catalog objects, 7 contents (8.0 MiB): all good");
    lab.manners("worker", "damaged");
    let said = says(&lab, &["scrub"]);
    assert_eq!(said.code, 20);
    insta::assert_snapshot!(said.stdout, @"
    12345678 (LAB/a): 5 entries, 6 catalog objects, 7 contents (8.0 MiB): problems: 1
      data/ab/ab12 does not hash to its name
    ");
    let said = says(&lab, &["scrub", "--json"]);
    assert_eq!(said.code, 20);
    insta::assert_snapshot!(said.stdout, @r#"
    [
      {
        "root": "LAB/a",
        "disk_id": "DISK-ID",
        "entries": 5,
        "objects": 6,
        "contents": 7,
        "content_bytes": 8388608,
        "problems": [
          "data/ab/ab12 does not hash to its name"
        ]
      }
    ]
    "#);
}

#[test]
fn changing_commands_and_their_failures() {
    let (lab, says) = host();
    let failure = |arguments: &[&str]| {
        let said = says(&lab, arguments);
        format!("{}{}exit {}", said.stdout, said.stderr, said.code)
    };
    insta::assert_snapshot!(failure(&["disk", "add", "nowhere"]), @"
    delugefs: LAB/nowhere does not exist
    Hint: make the folder first
    exit 10
    ");
    insta::assert_snapshot!(failure(&["disk", "add", "b"]), @"
    delugefs: LAB/b is not a DelugeFS disk folder (it has no disk.toml)
    Hint: --create makes a new disk of an empty folder
    exit 10
    ");
    insta::assert_snapshot!(failure(&["disk", "add", "a"]), @"
    delugefs: the disk at LAB/a is running already
    Hint: a `delugefs run` serves it, and what that one names holds for its run: name what you want there; or end it, and `disk add` serves the disk at every start
    exit 14
    ");
    insta::assert_snapshot!(failure(&["invite", "--expires", "31d"]), @"
    delugefs: an invitation works for 30 days at most
    Hint: leave --expires out (ten minutes), or write a time up to 30d
    exit 2
    ");
    insta::assert_snapshot!(failure(&["disk", "remove", "b"]), @"
    delugefs: no disk at LAB/b is known to this host
    Hint: `delugefs disks` lists them
    exit 10
    ");
    insta::assert_snapshot!(failure(&["disk", "remove", "a"]), @"
    delugefs: the mount at LAB/m shows the disk at LAB/a
    Hint: `delugefs umount LAB/m` first
    exit 14
    ");
    insta::assert_snapshot!(failure(&["mount", "m"]), @"
    delugefs: LAB/m is mounted already
    Hint: `delugefs umount LAB/m` unmounts it; or choose another folder
    exit 14
    ");
    insta::assert_snapshot!(failure(&["mount", "a"]), @"
    delugefs: LAB/a lies in the disk's own folder LAB/a
    Hint: mount on a folder outside of it
    exit 15
    ");
    insta::assert_snapshot!(failure(&["mount", "."]), @"
    delugefs: LAB would cover the disk's folder LAB/a
    Hint: mount on a folder outside of it
    exit 15
    ");
    assert_eq!(lab.says(&["mount", "a/inside"]).code, 15);
    assert!(!lab.path("a/inside").exists(), "made in a disk's own folder");
    insta::assert_snapshot!(failure(&["mount", "m/inside"]), @"
    delugefs: LAB/m/inside is inside the mount of DelugeFS at LAB/m
    Hint: choose a folder outside of LAB/m
    exit 15
    ");
    insta::assert_snapshot!(failure(&["umount", "n"]), @"
    delugefs: LAB/n is no mount of this host
    Hint: `delugefs status` lists them
    exit 15
    ");
    insta::assert_snapshot!(failure(&["stop"]), @"exit 0");
    insta::assert_snapshot!(failure(&["disk", "remove", "a"]), @"
    delugefs: no supervisor answers at LAB/r/control.sock
    Hint: start delugefs as always and repeat this, or take the disk out of `added.toml` in the state directory (or of your `delugefs.toml`): it is not started any more then; what is on it stays either way
    exit 17
    ");
    insta::assert_snapshot!(failure(&["stop"]), @"
    delugefs: no supervisor answers at LAB/r/control.sock
    Hint: `delugefs run CLUSTER ROOT --state-dir DIR` starts one; --run-dir DIR names another one's directory
    exit 17
    ");
}
