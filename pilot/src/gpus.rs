//! How GPUs are shown to a task: the variable of their vendor.

use crate::topology::GpuVendor;

/// Each GPU of the node: which variable, and its number there.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuEnv(pub Vec<(GpuVendor, u32)>);

impl GpuEnv {
    /// Variables for a task that has these GPUs (positions). A task without GPUs sees none, where the node has some.
    pub fn variables(&self, gpus: &[usize]) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        for (vendor, name) in [
            (GpuVendor::Nvidia, "CUDA_VISIBLE_DEVICES"),
            (GpuVendor::Amd, "ROCR_VISIBLE_DEVICES"),
            (GpuVendor::Intel, "ZE_AFFINITY_MASK"),
        ] {
            if !self.0.iter().any(|gpu| gpu.0 == vendor) {
                continue;
            }
            let seen: Vec<String> = gpus
                .iter()
                .filter_map(|&g| self.0.get(g))
                .filter(|g| g.0 == vendor)
                .map(|g| g.1.to_string())
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
        let env = GpuEnv(vec![(GpuVendor::Nvidia, 0), (GpuVendor::Nvidia, 1), (GpuVendor::Amd, 0)]);
        let seen = |gpus: &[usize]| {
            env.variables(gpus).into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>()
        };
        let order = "CUDA_DEVICE_ORDER=PCI_BUS_ID";
        assert_eq!(seen(&[1, 2]), ["CUDA_VISIBLE_DEVICES=1", order, "ROCR_VISIBLE_DEVICES=0"]);
        assert_eq!(seen(&[]), ["CUDA_VISIBLE_DEVICES=", order, "ROCR_VISIBLE_DEVICES="]);
        assert!(GpuEnv::default().variables(&[]).is_empty());
    }
}
