//! The relay's shell: links and provider commands.
