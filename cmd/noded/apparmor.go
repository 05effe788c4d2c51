package main

import (
	"github.com/moby/profiles/apparmor"
	"github.com/sirupsen/logrus"
)

// appArmorDefault is the profile of containers that name none, loaded into the
// kernel by this name.
const appArmorDefault = "noded-default"

// loadAppArmor loads the default profile and returns its name, or "" where
// there is none: without AppArmor, or without its apparmor_parser.
func loadAppArmor(enabled bool, log *logrus.Entry) string {
	if !enabled {
		return ""
	}
	if err := apparmor.InstallDefault(appArmorDefault); err != nil {
		if loaded, e := apparmor.IsLoaded(appArmorDefault); e == nil && loaded {
			return appArmorDefault // by the daemon before, or the administrator
		}
		log.WithError(err).Warn("the default AppArmor profile is not loaded: containers that name no profile run without one, and those that ask for the default are refused")
		return ""
	}
	return appArmorDefault
}
