//! The OCI distribution protocol: pull and push.
//!
//! Reading order: [`config`] (who is asked, and as whom), [`challenge`] and [`client`] (a request
//! until it has its answer: tokens, retries, redirects), [`pull`] and [`push`]. Asynchronous inside, on a runtime of
//! its own; blocking outside, for the store is threads.
//!
//! Source: OCI distribution specification; Docker's token authentication.

pub mod challenge;
pub mod client;
pub mod config;
pub mod error;
pub mod pull;
pub mod push;

pub use client::Client;
pub use config::Config;
pub use error::{Error, Result};
