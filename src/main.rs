//! The `tidegate` binary: parse, run, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;

// Batches allocate and free hundreds of megabytes; this allocator gives them back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match tidegate::cli::Cli::try_parse() {
        Ok(cli) => tidegate::app::main(cli),
        Err(refused) => tidegate::app::misused(&refused),
    }
}
