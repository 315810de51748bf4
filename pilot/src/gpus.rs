//! How GPUs are shown to a task: the variable of their vendor. What the batch system gave this process by the same variables is all that there is.

use crate::topology::{Gpu, GpuVendor};

const VARIABLES: [(GpuVendor, &str); 3] = [
    (GpuVendor::Nvidia, "CUDA_VISIBLE_DEVICES"),
    (GpuVendor::Amd, "ROCR_VISIBLE_DEVICES"),
    (GpuVendor::Intel, "ZE_AFFINITY_MASK"),
];

/// GPUs that this process may use: for each vendor whose variable is set, the names in it, which are numbers, UUIDs (`GPU-8f6a..`) or tiles (`0.1`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VisibleGpus(Vec<(GpuVendor, Vec<String>)>);

impl VisibleGpus {
    /// What the batch system, or the user, gave this process.
    pub fn own() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    pub fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let names = |text: String| -> Vec<String> {
            let names = text.split(',').map(|name| name.trim().to_string());
            // Vendors' own rule: the first name that means nothing ends the list. `NoDevFiles` is Slurm's word for none.
            names
                .take_while(|name| !name.is_empty() && !name.starts_with('-') && name != "NoDevFiles")
                .collect()
        };
        VisibleGpus(
            VARIABLES.iter().filter_map(|(vendor, name)| Some((*vendor, names(var(name)?)))).collect(),
        )
    }

    /// Of the GPUs `found`, those that may be used, each with the name by which it is given on. A name that hwloc cannot tell (a UUID, a tile) counts as
    /// a GPU that is near to no core in particular.
    pub fn of<'a>(&self, found: &'a [Gpu]) -> Vec<(GpuVendor, String, Option<&'a Gpu>)> {
        let mut all = Vec::new();
        for (vendor, _) in VARIABLES {
            let of_vendor: Vec<&Gpu> = found.iter().filter(|gpu| gpu.vendor == vendor).collect();
            match self.0.iter().find(|(given, _)| *given == vendor) {
                None => {
                    all.extend(of_vendor.into_iter().map(|gpu| (vendor, gpu.index.to_string(), Some(gpu))))
                }
                // The scheduler sets the variables of all vendors alike; a vendor of whom there is nothing here gives nothing.
                Some(_) if of_vendor.is_empty() => {}
                Some((_, names)) => {
                    let by_name =
                        |name: &String| of_vendor.iter().copied().find(|gpu| gpu.index.to_string() == *name);
                    all.extend(names.iter().map(|name| (vendor, name.clone(), by_name(name))));
                }
            }
        }
        all
    }
}

/// Each GPU of the node: which variable, and its name there.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuEnv(pub Vec<(GpuVendor, String)>);

impl GpuEnv {
    /// Variables for a task that has these GPUs (positions). A task without GPUs sees none, where the node has some.
    pub fn variables(&self, gpus: &[usize]) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for (vendor, name) in VARIABLES {
            if !self.0.iter().any(|gpu| gpu.0 == vendor) {
                continue;
            }
            let seen: Vec<String> = gpus
                .iter()
                .filter_map(|&g| self.0.get(g))
                .filter(|g| g.0 == vendor)
                .map(|g| g.1.clone())
                .collect();
            out.push((name, seen.join(",")));
            if vendor == GpuVendor::Nvidia {
                // Our numbers are in the order of PCI addresses; CUDA's own order is by speed.
                out.push(("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into()));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_sees_its_gpus_and_no_others() {
        let env = GpuEnv(
            [(GpuVendor::Nvidia, "0"), (GpuVendor::Nvidia, "1"), (GpuVendor::Amd, "0")]
                .map(|(v, n)| (v, n.into()))
                .to_vec(),
        );
        let seen = |gpus: &[usize]| {
            env.variables(gpus).into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>()
        };
        let order = "CUDA_DEVICE_ORDER=PCI_BUS_ID";
        assert_eq!(seen(&[1, 2]), ["CUDA_VISIBLE_DEVICES=1", order, "ROCR_VISIBLE_DEVICES=0"]);
        assert_eq!(seen(&[]), ["CUDA_VISIBLE_DEVICES=", order, "ROCR_VISIBLE_DEVICES="]);
        assert!(GpuEnv::default().variables(&[]).is_empty());
    }

    fn gpu(vendor: GpuVendor, index: u32) -> Gpu {
        Gpu {
            index,
            vendor,
            model: String::new(),
            pci: String::new(),
            numa: None,
            pus: Vec::new(),
            memory_bytes: None,
        }
    }

    #[test]
    fn what_the_batch_system_gave_is_all_there_is() {
        let found: Vec<Gpu> = (0..4).map(|n| gpu(GpuVendor::Nvidia, n)).collect();
        let usable = |value: Option<&str>| {
            // Slurm sets those of all vendors.
            let visible = VisibleGpus::read(|_| value.map(String::from));
            let name = |(_, name, gpu): (GpuVendor, String, Option<&Gpu>)| {
                format!("{name}{}", if gpu.is_some() { "" } else { "?" })
            };
            visible.of(&found).into_iter().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(usable(None), "0 1 2 3");
        assert_eq!(usable(Some("2,3")), "2 3");
        assert_eq!(usable(Some("3, 1")), "3 1");
        for none in ["", "NoDevFiles", "-1"] {
            assert_eq!(usable(Some(none)), "", "{none:?}");
        }
        assert_eq!(usable(Some("0,-1,2")), "0");
        assert_eq!(usable(Some("GPU-8f6a0c1d,1")), "GPU-8f6a0c1d? 1");
    }

    #[test]
    fn the_names_that_were_given_are_given_on() {
        let found = [gpu(GpuVendor::Intel, 0)];
        let visible = VisibleGpus::read(|name| (name == "ZE_AFFINITY_MASK").then(|| "0.0,0.1".into()));
        let env = GpuEnv(visible.of(&found).into_iter().map(|(vendor, name, _)| (vendor, name)).collect());
        assert_eq!(env.variables(&[1]), [("ZE_AFFINITY_MASK", "0.1".to_string())]);
    }
}
