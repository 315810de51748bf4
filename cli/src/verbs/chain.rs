//! Composes broker and relays from their crates: one process, one reactor thread.
use crate::Context;
use crate::args::manage::RelayRunArgs;
use crate::config::Config;
use crate::error::{CliError, Result};
use std::path::{Path, PathBuf};
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Daemon,
    Private,
}
pub struct Chain {
    socket: PathBuf,
}
impl Chain {
    pub fn start(config: &Config, _kind: Kind) -> Result<Chain> {
        let _ = config;
        Err(CliError::internal("not there yet"))
    }
    pub fn socket(&self) -> &Path {
        &self.socket
    }
    pub async fn ended(&mut self) {
        std::future::pending().await
    }
    pub async fn stop(self) -> Result<()> {
        Ok(())
    }
}
pub fn certificate(_config: &Config) -> Result<String> {
    Err(CliError::internal("not there yet"))
}
pub fn relay_key(_config: &Config, _endpoint: &str) -> Result<String> {
    Err(CliError::internal("not there yet"))
}
pub async fn run_relay(_context: &Context, _args: &RelayRunArgs) -> Result<()> {
    Err(CliError::internal("not there yet"))
}
