//! `pf`.

fn main() -> std::process::ExitCode {
    pf_cli::main()
}
