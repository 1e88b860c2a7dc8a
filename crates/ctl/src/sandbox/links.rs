//! The commands that cut, worsen and heal the cables of nodes.

use anyhow::bail;

use super::cable;
use super::lifecycle::Running;
use super::settings::LinkSettings;

impl Running {
    /// Cuts nodes off from the others.
    pub(crate) fn partition(&mut self, nodes: &[String]) -> anyhow::Result<()> {
        self.check_all_run(nodes)?;
        self.each(nodes, |sandbox, index| {
            sandbox.state.nodes[index].cut_off = true;
            sandbox.connect(index)
        })
    }

    /// Gives the cables of nodes these settings and no others. They stay when a node starts again.
    pub(crate) fn link(&mut self, nodes: &[String], settings: LinkSettings) -> anyhow::Result<()> {
        settings.check()?;
        self.check_all_run(nodes)?;
        self.each(nodes, |sandbox, index| {
            sandbox.state.nodes[index].link = (!settings.are_perfect()).then_some(settings);
            sandbox.connect(index)
        })
    }

    /// Makes all cables good, whatever happened to them.
    pub(crate) fn heal(&mut self) -> anyhow::Result<()> {
        for index in 0..self.state.nodes.len() {
            let node = &mut self.state.nodes[index];
            (node.cut_off, node.link) = (false, None);
            self.connect(index)?;
        }
        self.state.save()
    }

    /// Refuses a command before it has changed anything.
    fn check_all_run(&self, nodes: &[String]) -> anyhow::Result<()> {
        for name in nodes {
            if !self.state.nodes[self.node(name)?].runs() {
                bail!("node {name} does not run");
            }
        }
        Ok(())
    }

    fn connect(&self, index: usize) -> anyhow::Result<()> {
        let node = &self.state.nodes[index];
        if node.runs() { cable::connect(&self.state, node) } else { Ok(()) }
    }
}
