//! `--help` of every command.

use crate::lab::Lab;
use std::process::Command;
