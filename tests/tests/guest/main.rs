//! Real Linux guests on the daemon that ships. One program, so that guests of one core each run beside each other.

mod backups;
mod discard;
mod filesystem;
mod fio;
mod harness;
mod killed;
mod live;
mod qcow2;
mod read_only;
mod reattach;
mod two_disks;
