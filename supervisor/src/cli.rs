//! `delugefs`: the user's command. It talks to the host's supervisor and shows what it says; only `run` starts anything.

mod client;
mod json;
mod run;
mod show;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use delugefs_proto::exit::Exit;
use delugefs_proto::{control_pb as pb, rundir};

use crate::paths;

/// A filesystem on disks of your choice: start it, mount it, ask it.
#[derive(Debug, Parser)]
#[command(name = "delugefs", version)]
pub struct Cli {
    /// Where the sockets are [default: /var/run/delugefs, or the user's]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a disk, and mount the filesystem, until interrupted
    Run(run::Arguments),
    /// Show the disks and mounts of this host
    Status {
        /// Only what is wrong; exit code 20 if anything is
        #[arg(short = 'x')]
        only_problems: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Show the disks of this host in detail
    Disks {
        #[command(flatten)]
        form: Form,
    },
    /// Show the torrents that are live now
    Torrents {
        #[command(flatten)]
        form: Form,
    },
    /// Show where the contents of files are
    Whereis {
        /// A path below a mountpoint of this host, or from the root of the filesystem
        #[arg(required = true)]
        path: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Check everything on this host's disks; exit code 20 if something is wrong
    Scrub {
        #[command(flatten)]
        form: Form,
    },
    /// Add a disk to this host or take one away
    #[command(subcommand)]
    Disk(Disk),
    /// Mount the filesystem on a folder, now and at every start
    Mount {
        /// The folder
        dir: PathBuf,
        /// Serve it as this user (when the supervisor runs as root)
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Unmount it
    Umount {
        /// The folder it is mounted on
        dir: PathBuf,
    },
    /// Stop the mounts and disks of this host and its supervisor
    Stop,
}

#[derive(Debug, Subcommand)]
enum Disk {
    /// Serve a disk, now and at every start
    Add {
        /// The disk's folder
        root: PathBuf,
        /// Make a new disk of this folder, which must be empty
        #[arg(long)]
        create: bool,
    },
    /// Serve it no longer; what is on it stays
    Remove {
        /// The disk's folder
        root: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// For programs (the fields: supervisor/DESIGN.md)
    #[arg(long)]
    json: bool,
}

/// Do what the command line says.
///
/// # Errors
/// What [`delugefs_proto::exit::report`] is to show.
pub async fn execute(cli: Cli) -> anyhow::Result<Exit> {
    let run_dir = cli.run_dir.unwrap_or_else(rundir::default_run_dir);
    if let Command::Run(arguments) = cli.command {
        return run::run(&run_dir, arguments).await;
    }
    let mut control = client::connect(&run_dir).await?;
    match cli.command {
        Command::Run(_) => {}
        Command::Status { only_problems, form } => return show::status(&mut control, only_problems, form.json).await,
        Command::Disks { form } => return show::disks(&mut control, form.json).await,
        Command::Torrents { form } => return show::torrents(&mut control, form.json).await,
        Command::Whereis { path, form } => return show::whereis(&mut control, &path, form.json).await,
        Command::Scrub { form } => return show::scrub(&mut control, form.json).await,
        Command::Disk(Disk::Add { root, create }) => {
            let root = paths::typed(&root)?;
            let request = pb::AddDiskRequest { root, create, remember: true, ..Default::default() };
            let added = client::answer(control.add_disk(request).await)?;
            println!("disk {}", delugefs_proto::disk::short_id(&added.disk_id));
            if client::answer(control.disks(pb::DisksRequest {}).await)?.disks.len() > 1 {
                eprintln!("Note: disks do not exchange their contents yet; a mount shows one of them.");
            }
        }
        Command::Disk(Disk::Remove { root }) => {
            let root = paths::typed(&root)?;
            client::answer(control.remove_disk(pb::RemoveDiskRequest { root }).await)?;
        }
        Command::Mount { dir, user } => {
            let (dir, user) = (paths::typed(&dir)?, user.unwrap_or_default());
            paths::make_mountpoint(&dir);
            client::answer(control.add_mount(pb::AddMountRequest { dir, user, remember: true }).await)?;
        }
        Command::Umount { dir } => {
            let dir = paths::typed(&dir)?;
            client::answer(control.remove_mount(pb::RemoveMountRequest { dir }).await)?;
        }
        Command::Stop => {
            client::answer(control.stop(pb::StopRequest {}).await)?;
        }
    }
    Ok(Exit::Ok)
}
