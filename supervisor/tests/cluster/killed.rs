//! A program that waits for bytes from elsewhere can be killed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use super::lab::{HALTED, Lab};
use super::stories::{bytes, halt, joined_with_single_copies, wait_for_content};
use super::wait_for;
use crate::e2e::signal;

/// A program that reads the file, as soon as it waits in the kernel for the filesystem to answer.
fn waiting_reader(lab: &Lab, file: &Path) -> Child {
    let reader = Command::new("cat").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let place = format!("/proc/{}/wchan", reader.id());
    let waits = || {
        let place = fs::read_to_string(&place).unwrap_or_default();
        place.contains("request_wait_answer") || place.contains("folio_wait")
    };
    wait_for("the reader to wait", || lab.logs(), waits);
    reader
}

#[test]
fn a_program_that_waits_for_another_host_can_be_killed() {
    let Some(lab) = joined_with_single_copies() else { return };
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    let worker = here.worker();
    halt(worker);
    for (name, with) in [("one/small", Signal::SIGTERM), ("one/large", Signal::SIGKILL)] {
        let mut patient = waiting_reader(&lab, &there.file(name));
        let mut killed = waiting_reader(&lab, &there.file(name));
        signal(killed.id(), with);
        killed.wait().unwrap();
        assert!(patient.try_wait().unwrap().is_none(), "{name}: the one that was killed waited like the other one");
        patient.kill().unwrap();
        patient.wait().unwrap();
    }
    signal(worker, Signal::SIGCONT);
    wait_for_content(&lab, &there.file("one/small"), &bytes(70_000));
    wait_for_content(&lab, &there.file("one/large"), &bytes(40 << 20));
    lab.finish(&HALTED);
}
