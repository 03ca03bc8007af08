//! Which implementation of WireGuard carries which device.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use model::{
    InterfaceName,
    pass::{Chosen, DeviceBackend, Implementation},
    resource::mesh_configuration::Backend as Choice,
};
use wire::uapi::{Configuration, Status};
use wire_core::PublicKey;

use super::{Backend, BackendError};

/// How long it is remembered that the kernel has no WireGuard, unless a device fails before.
const NEGATIVE: Duration = Duration::from_secs(60);

/// The implementations of this machine, as one: each device is asked for where it is.
pub struct Implementations {
    kernel: Box<dyn Backend>,
    userspace: Box<dyn Backend>,
    /// What is meant where the plan says `Auto`.
    preference: Choice,
    /// When the kernel was last found to lack WireGuard.
    lacked: Option<Instant>,
    /// Where each device was last.
    places: BTreeMap<InterfaceName, Implementation>,
}

impl Implementations {
    /// Takes both. `preference` is what `Auto` means on this machine.
    pub fn new(
        kernel: impl Backend + 'static,
        userspace: impl Backend + 'static,
        preference: Choice,
    ) -> Self {
        Self {
            kernel: Box::new(kernel),
            userspace: Box::new(userspace),
            preference,
            lacked: None,
            places: BTreeMap::new(),
        }
    }

    /// Returns one of them.
    pub(crate) fn of(&mut self, implementation: Implementation) -> &mut dyn Backend {
        match implementation {
            Implementation::Kernel => self.kernel.as_mut(),
            Implementation::Meshwire => self.userspace.as_mut(),
        }
    }

    /// Returns our devices, and who has them. A tunnel service that is away has none.
    pub(crate) fn list(&mut self) -> Result<BTreeMap<InterfaceName, Implementation>, BackendError> {
        let in_kernel = self.kernel.list()?;
        let elsewhere = match self.userspace.list() {
            Err(BackendError::Away(_)) => Vec::new(),
            names => names?,
        };
        self.places.clear();
        let elsewhere = elsewhere
            .into_iter()
            .map(|name| (name, Implementation::Meshwire));
        self.places.extend(elsewhere);
        let in_kernel = in_kernel
            .into_iter()
            .map(|name| (name, Implementation::Kernel));
        self.places.extend(in_kernel);

        Ok(self.places.clone())
    }

    /// Returns who has a device of this name.
    pub(crate) fn holder(
        &mut self,
        device: &InterfaceName,
    ) -> Result<Option<Implementation>, BackendError> {
        self.places.remove(device);
        for implementation in [Implementation::Kernel, Implementation::Meshwire] {
            if self.of(implementation).holds(device)? {
                self.places.insert(device.clone(), implementation);
                return Ok(Some(implementation));
            }
        }

        Ok(None)
    }

    /// Decides who shall carry a device that is now with `holder`.
    ///
    /// [`BackendError::Away`] where the kernel is asked for and has no WireGuard. A device that is there
    /// stays where it is for as long as the choice lets it.
    pub(crate) fn choose(
        &mut self,
        choice: Choice,
        holder: Option<Implementation>,
    ) -> Result<DeviceBackend, BackendError> {
        let (implementation, chosen) = match self.meant(choice) {
            Choice::Userspace => (Implementation::Meshwire, Chosen::Forced),
            Choice::Kernel if self.kernel_is_there()? => (Implementation::Kernel, Chosen::Forced),
            Choice::Kernel => {
                let reason = "this kernel has no WireGuard, and MeshConfiguration asks for it";
                return Err(BackendError::Away(reason.to_owned()));
            }
            Choice::Auto => {
                let is_there = self.kernel_is_there()?;
                match (holder, is_there) {
                    (Some(Implementation::Meshwire), true) => {
                        (Implementation::Meshwire, Chosen::Adopted)
                    }
                    (Some(Implementation::Kernel), _) | (None, true) => {
                        (Implementation::Kernel, Chosen::KernelHasIt)
                    }
                    (Some(Implementation::Meshwire) | None, false) => {
                        (Implementation::Meshwire, Chosen::KernelLacksIt)
                    }
                }
            }
        };

        Ok(DeviceBackend {
            implementation,
            chosen,
        })
    }

    /// Returns whether a choice lets this implementation carry a device.
    pub(crate) fn allows(&self, choice: Choice, implementation: Implementation) -> bool {
        let meant = self.meant(choice);

        match implementation {
            Implementation::Kernel => meant != Choice::Userspace,
            Implementation::Meshwire => meant != Choice::Kernel,
        }
    }

    /// Asks anew at the next choice what the kernel has.
    pub(crate) fn forget_probe(&mut self) {
        self.lacked = None;
    }

    /// Reads a device, wherever it is; `None` where it is nowhere.
    pub(crate) fn read(&mut self, device: &InterfaceName) -> Result<Option<Status>, BackendError> {
        if let Some(place) = self.places.get(device).copied()
            && let Some(status) = self.of(place).read(device)?
        {
            return Ok(Some(status));
        }

        match self.holder(device)? {
            Some(holder) => self.of(holder).read(device),
            None => Ok(None),
        }
    }

    /// Changes a device, wherever it is.
    pub(crate) fn write(
        &mut self,
        device: &InterfaceName,
        configuration: &Configuration,
    ) -> Result<(), BackendError> {
        self.with_holder(device, |backend| backend.write(device, configuration))
    }

    /// Begins handshakes; see [`Backend::greet`].
    pub(crate) fn greet(
        &mut self,
        device: &InterfaceName,
        peers: &[(PublicKey, u16)],
    ) -> Result<(), BackendError> {
        self.with_holder(device, |backend| backend.greet(device, peers))
    }

    /// Returns who has a device, as far as is known without asking.
    pub(crate) fn place(&self, device: &InterfaceName) -> Option<Implementation> {
        self.places.get(device).copied()
    }

    /// Does something where the device is; looks for it where it is not there any more.
    fn with_holder(
        &mut self,
        device: &InterfaceName,
        work: impl Fn(&mut dyn Backend) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        if let Some(place) = self.place(device) {
            match work(self.of(place)) {
                Err(BackendError::Away(_)) => {}
                result => return result,
            }
        }

        match self.holder(device)? {
            Some(holder) => work(self.of(holder)),
            None => Err(BackendError::Away(format!(
                "there is no WireGuard device {device}"
            ))),
        }
    }

    fn meant(&self, choice: Choice) -> Choice {
        match choice {
            Choice::Auto => self.preference,
            Choice::Kernel | Choice::Userspace => choice,
        }
    }

    fn kernel_is_there(&mut self) -> Result<bool, BackendError> {
        if self.lacked.is_some_and(|at| at.elapsed() < NEGATIVE) {
            return Ok(false);
        }
        let is_there = self.kernel.is_there()?;
        self.lacked = (!is_there).then(Instant::now);

        Ok(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_device_is_the_kernels_where_it_has_wireguard() {
        assert_eq!(
            choose(Choice::Auto, true, None),
            kernel(Chosen::KernelHasIt)
        );
        assert_eq!(
            choose(Choice::Auto, false, None),
            meshwire(Chosen::KernelLacksIt)
        );
    }

    #[test]
    fn a_device_stays_where_it_is_for_as_long_as_the_choice_lets_it() {
        let [in_kernel, in_userspace] =
            [Implementation::Kernel, Implementation::Meshwire].map(Some);

        assert_eq!(
            choose(Choice::Auto, true, in_kernel),
            kernel(Chosen::KernelHasIt)
        );
        assert_eq!(
            choose(Choice::Auto, true, in_userspace),
            meshwire(Chosen::Adopted)
        );
        assert_eq!(
            choose(Choice::Kernel, true, in_userspace),
            kernel(Chosen::Forced)
        );
        assert_eq!(
            choose(Choice::Userspace, true, in_kernel),
            meshwire(Chosen::Forced)
        );
    }

    #[test]
    fn a_kernel_that_is_asked_for_and_is_not_there_is_never_replaced() {
        assert_eq!(choose(Choice::Kernel, false, None), None);
        assert_eq!(
            choose(Choice::Kernel, false, Some(Implementation::Meshwire)),
            None
        );
    }

    #[test]
    fn a_machines_own_preference_counts_only_where_the_settings_leave_it_open() {
        let machine = |choice| {
            let mut both = Implementations::new(Fake(true), Fake(false), Choice::Userspace);
            both.choose(choice, None).ok()
        };

        assert_eq!(machine(Choice::Auto), meshwire(Chosen::Forced));
        assert_eq!(machine(Choice::Kernel), kernel(Chosen::Forced));
    }

    fn choose(choice: Choice, has: bool, holder: Option<Implementation>) -> Option<DeviceBackend> {
        let mut both = Implementations::new(Fake(has), Fake(false), Choice::Auto);

        both.choose(choice, holder).ok()
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with an answer")]
    fn kernel(chosen: Chosen) -> Option<DeviceBackend> {
        Some(DeviceBackend {
            implementation: Implementation::Kernel,
            chosen,
        })
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with an answer")]
    fn meshwire(chosen: Chosen) -> Option<DeviceBackend> {
        Some(DeviceBackend {
            implementation: Implementation::Meshwire,
            chosen,
        })
    }

    /// An implementation that is there, or not, and has no devices.
    struct Fake(bool);

    impl Backend for Fake {
        fn is_there(&mut self) -> Result<bool, BackendError> {
            Ok(self.0)
        }

        fn list(&mut self) -> Result<Vec<InterfaceName>, BackendError> {
            Ok(Vec::new())
        }

        fn holds(&mut self, _: &InterfaceName) -> Result<bool, BackendError> {
            Ok(false)
        }

        fn create(&mut self, _: &InterfaceName, _: u32) -> Result<(), BackendError> {
            Ok(())
        }

        fn delete(&mut self, _: &InterfaceName) -> Result<(), BackendError> {
            Ok(())
        }

        fn read(&mut self, _: &InterfaceName) -> Result<Option<Status>, BackendError> {
            Ok(None)
        }

        fn write(&mut self, _: &InterfaceName, _: &Configuration) -> Result<(), BackendError> {
            Ok(())
        }

        fn greet(&mut self, _: &InterfaceName, _: &[(PublicKey, u16)]) -> Result<(), BackendError> {
            Ok(())
        }
    }
}
