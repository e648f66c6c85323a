//! `--help` of everything: what is not there is not claimed.

use std::process::Command;

use crate::lab::Lab;

fn help(arguments: &[&str]) -> String {
    let said = Lab::new().says(&[arguments, &["--help"]].concat());
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    said.stdout
}

#[test]
fn overview() {
    insta::assert_snapshot!(help(&[]), @"
    A filesystem on disks of your choice: start it, mount it, ask it

    Usage: delugefs [OPTIONS] <COMMAND>

    Commands:
      run        Serve a disk, and mount the filesystem, until interrupted
      status     Show the disks and mounts of this host
      disks      Show the disks of this host in detail
      torrents   Show the torrents that are live now
      whereis    Show where the contents of files are
      scrub      Check everything on this host's disks; exit code 20 if something is wrong
      invite     Print an invitation for one further host
      join       Make this host a member of a cluster, with an invitation from another host
      peers      Show the hosts and disks of the cluster
      revoke     Take a host's or disk's right to take part, for ever
      conflicts  List the files that exist in several versions
      copies     Show or set how many copies are wanted of what is below a path
      disk       Add a disk to this host or take one away
      mount      Mount the filesystem on a folder, now and at every start
      umount     Unmount it
      stop       Stop the mounts and disks of this host and its supervisor
      help       Print this message or the help of the given subcommand(s)

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
      -V, --version        Print version
    ");
}

#[test]
fn run() {
    insta::assert_snapshot!(help(&["run"]), @"
    Serve a disk, and mount the filesystem, until interrupted

    Usage: delugefs run [OPTIONS] <CLUSTER> <ROOT>

    Arguments:
      <CLUSTER>  Name of the cluster
      <ROOT>     The disk's folder

    Options:
          --create            Make a new disk of this folder, which must be empty
          --run-dir <DIR>     Where the sockets are [default: /var/run/delugefs, or the user's]
          --mount <DIR>       Mount the filesystem on this folder
          --user <NAME>       Serve the mount as this user (when run as root)
          --state-dir <DIR>   What the next start has to know [default: /var/db/delugefs, or the user's]
          --no-mdns           Neither announce this host's disks on the local network nor look for others there (also: DELUGEFS_NO_MDNS=1)
          --join <TOKEN>      Join the cluster with an invitation from one of its hosts (`delugefs invite`); the disk is made if it is not there
          --lazy              Fetch contents to this disk only to read them
          --no-lazy           Keep copies on this disk, after it was lazy
          --btport <PORT>     TCP port of this disk for other disks [default: any, the same again; 0 takes back what was said before]
          --site <NAME>       Where this disk is: copies are spread over sites ('' takes it back)
          --listen <ADDR>     IP address to listen on for other disks [default: all; '' takes back what was said before]
          --peer <HOST:PORT>  Where a disk of the cluster is that multicast does not reach; may be given several times
      -h, --help              Print help

    What is said of the disk and its mount holds for this run; only the port is the same again. What `delugefs disk add` said of the disk
    stays as it was. --state-dir, --no-mdns and --peer are for the supervisor, and do nothing when one runs already.
    ");
}

#[test]
fn status() {
    insta::assert_snapshot!(help(&["status"]), @"
    Show the disks and mounts of this host

    Usage: delugefs status [OPTIONS]

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -x                   Only what is wrong; exit code 20 if anything is
          --json           For programs (the fields: supervisor/DESIGN.md)
      -h, --help           Print help
    ");
}

#[test]
fn disks() {
    insta::assert_snapshot!(help(&["disks"]), @"
    Show the disks of this host in detail

    Usage: delugefs disks [OPTIONS]

    Options:
          --json           For programs (the fields: supervisor/DESIGN.md)
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn torrents() {
    insta::assert_snapshot!(help(&["torrents"]), @"
    Show the torrents that are live now

    Usage: delugefs torrents [OPTIONS]

    Options:
          --json           For programs (the fields: supervisor/DESIGN.md)
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn whereis() {
    insta::assert_snapshot!(help(&["whereis"]), @"
    Show where the contents of files are

    Usage: delugefs whereis [OPTIONS] <PATH>...

    Arguments:
      <PATH>...  A path below a mountpoint of this host, or from the root of the filesystem

    Options:
          --json           For programs (the fields: supervisor/DESIGN.md)
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn scrub() {
    insta::assert_snapshot!(help(&["scrub"]), @"
    Check everything on this host's disks; exit code 20 if something is wrong

    Usage: delugefs scrub [OPTIONS]

    Options:
          --json           For programs (the fields: supervisor/DESIGN.md)
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn disk() {
    insta::assert_snapshot!(help(&["disk"]), @"
    Add a disk to this host or take one away

    Usage: delugefs disk [OPTIONS] <COMMAND>

    Commands:
      add     Serve a disk, now and at every start
      drain   Empty a disk: what it holds is copied to others, then it lets go
      forget  Do not wait any more for a disk that is away: its copies are made anew
      remove  Serve it no longer; what is on it stays
      help    Print this message or the help of the given subcommand(s)

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
    insta::assert_snapshot!(help(&["disk", "add"]), @"
    Serve a disk, now and at every start

    Usage: delugefs disk add [OPTIONS] <ROOT>

    Arguments:
      <ROOT>  The disk's folder

    Options:
          --create         Make a new disk of this folder, which must be empty
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
          --lazy           Fetch contents to this disk only to read them
          --no-lazy        Keep copies on this disk, after it was lazy
          --btport <PORT>  TCP port of this disk for other disks [default: any, the same again; 0 takes back what was said before]
          --site <NAME>    Where this disk is: copies are spread over sites ('' takes it back)
          --listen <ADDR>  IP address to listen on for other disks [default: all; '' takes back what was said before]
      -h, --help           Print help
    ");
    insta::assert_snapshot!(help(&["disk", "remove"]), @"
    Serve it no longer; what is on it stays

    Usage: delugefs disk remove [OPTIONS] <ROOT>

    Arguments:
      <ROOT>  The disk's folder

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn mount_umount_and_stop() {
    insta::assert_snapshot!(help(&["mount"]), @"
    Mount the filesystem on a folder, now and at every start

    Usage: delugefs mount [OPTIONS] <DIR>

    Arguments:
      <DIR>  The folder

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
          --user <NAME>    Serve it as this user (when the supervisor runs as root)
      -h, --help           Print help
    ");
    insta::assert_snapshot!(help(&["umount"]), @"
    Unmount it

    Usage: delugefs umount [OPTIONS] <DIR>

    Arguments:
      <DIR>  The folder it is mounted on

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
    insta::assert_snapshot!(help(&["stop"]), @"
    Stop the mounts and disks of this host and its supervisor

    Usage: delugefs stop [OPTIONS]

    Options:
          --run-dir <DIR>  Where the sockets are [default: /var/run/delugefs, or the user's]
      -h, --help           Print help
    ");
}

#[test]
fn supervisor() {
    let lab = Lab::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_delugefs-supervisor"));
    lab.hermetic(&mut command);
    let said = lab.said(command.arg("--help").output().unwrap());
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    insta::assert_snapshot!(said.stdout, @"
    Keeps the disks and mounts of a host running

    Usage: delugefs-supervisor [OPTIONS]

    Options:
          --run-dir <DIR>     Where the sockets are [default: /var/run/delugefs, or the user's]
          --state-dir <DIR>   What the next start has to know [default: /var/db/delugefs, or the user's]
          --config <FILE>     Disks and mounts to start (delugefs.toml)
          --no-mdns           Neither announce this host's disks on the local network nor look for others there (also: DELUGEFS_NO_MDNS=1)
          --peer <HOST:PORT>  Address of a disk of the cluster that multicast does not reach; may be given several times
          --found <CLUSTER>   Print the id of the cluster of this name that this host is a member of, and end; found it if there is none
      -h, --help              Print help
      -V, --version           Print version
    ");
}
