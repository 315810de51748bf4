//! Shapes of blocks: `[endpoints.NAME.shapes.SHAPE]` says of some of the endpoint's settings what holds for this shape.

use super::layers::{Settings, check_name, nearest_hint};
use super::register::{ENDPOINT_SECTION, SHAPE_KEYS};
use super::value::Origin;
use crate::error::{CliError, Result};
use toml::de::DeValue;

impl Settings {
    /// One `shapes` table of an endpoint.
    pub(super) fn add_shapes(
        &mut self,
        endpoint: &str,
        value: &DeValue<'_>,
        at: &dyn Fn(usize) -> Origin,
        origin: &Origin,
    ) -> Result<()> {
        let no_table = |name: &str, origin: &Origin| {
            CliError::usage(format!("{origin}: {name} must be a table"))
                .hint("write [endpoints.NAME.shapes.SHAPE], and its settings below")
        };
        let full = format!("endpoints.{endpoint}.shapes");
        let Some(shapes) = value.as_table() else { return Err(no_table(&full, origin)) };
        for (shape, value) in shapes {
            let origin = at(shape.span().start);
            check_name(shape.get_ref(), "a shape", &origin)?;
            let full = format!("{full}.{}", shape.get_ref());
            let Some(keys) = value.get_ref().as_table().filter(|t| !t.is_empty()) else {
                return Err(no_table(&full, &origin));
            };
            for (key, value) in keys {
                let (short, origin) = (key.get_ref().as_ref(), at(key.span().start));
                if !SHAPE_KEYS.contains(&short) {
                    let error = CliError::usage(format!("{origin}: unknown key {short:?} in [{full}]"));
                    return Err(error.hint(nearest_hint(
                        short,
                        SHAPE_KEYS.iter().copied(),
                        "key of a shape",
                    )));
                }
                let registered = format!("{ENDPOINT_SECTION}.{short}");
                self.add_value(&registered, &format!("{full}.{short}"), value.get_ref(), origin)?;
            }
        }
        Ok(())
    }

    /// Names of an endpoint's shapes in the order in which they are written: those of a profile before those of a file.
    #[must_use]
    pub fn shape_names(&self, endpoint: &str) -> Vec<String> {
        let prefix = format!("endpoints.{endpoint}.shapes.");
        let mut first: Vec<(&Origin, &str)> = Vec::new();
        for (full, (_, origin)) in &self.values {
            let Some((shape, _)) = full.strip_prefix(&prefix).and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            match first.iter_mut().find(|(_, name)| *name == shape) {
                Some(known) => known.0 = known.0.min(origin),
                None => first.push((origin, shape)),
            }
        }
        first.sort();
        first.into_iter().map(|(_, name)| name.to_owned()).collect()
    }
}
