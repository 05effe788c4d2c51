package userdb

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"noded.dev/noded/internal/kind"
)

// identity is a name or a number; neither if it is not given.
type identity struct {
	name string
	id   *uint32
}

// wanted is who to look for.
type wanted struct{ user, group identity }

// wish decides between request and image.
func wish(r Request) (wanted, error) {
	var w wanted
	image, imageErr := parseImageUser(r.ImageUser)
	switch {
	case r.RunAsUser != nil:
		id, err := checkID("run_as_user", *r.RunAsUser)
		if err != nil {
			return w, err
		}
		w.user.id = &id
		// The kubelet repeats the image's own uid as run_as_user, without its
		// group; that group is still meant.
		if imageErr == nil && image.user.id != nil && *image.user.id == id {
			w.group = image.group
		}
	case r.RunAsUsername != "":
		name, err := parseIdentity("run_as_username", r.RunAsUsername)
		if err != nil {
			return w, err
		}
		if name.id != nil {
			return w, kind.Errorf(kind.Invalid, "run_as_username %q is a number", clip(r.RunAsUsername))
		}
		w.user = name
		if imageErr == nil && image.user.name == name.name {
			w.group = image.group
		}
	case r.RunAsGroup != nil:
		return w, kind.Errorf(kind.Invalid, "run_as_group without run_as_user or run_as_username")
	case imageErr != nil:
		return w, imageErr
	default:
		w = image
	}
	if r.RunAsGroup != nil {
		id, err := checkID("run_as_group", *r.RunAsGroup)
		if err != nil {
			return w, err
		}
		w.group = identity{id: &id}
	}
	return w, nil
}

// ImageUser splits an image's USER into what ImageStatus reports: a uid, or a
// name. Both are empty for "", which is root. kind.Invalid if it is malformed;
// then nothing may be reported, least of all uid 0.
func ImageUser(s string) (uid *int64, name string, err error) {
	if s == "" {
		return nil, "", nil
	}
	w, err := parseImageUser(s)
	if err != nil {
		return nil, "", err
	}
	if w.user.id != nil {
		id := int64(*w.user.id)
		return &id, "", nil
	}
	return nil, w.user.name, nil
}

func parseImageUser(s string) (wanted, error) {
	var w wanted
	if s == "" {
		root := uint32(0)
		w.user.id = &root
		return w, nil
	}
	user, group, hasGroup := strings.Cut(s, ":")
	var err error
	if w.user, err = parseIdentity("user of the image", user); err != nil {
		return wanted{}, err
	}
	if hasGroup {
		if w.group, err = parseIdentity("group of the image", group); err != nil {
			return wanted{}, err
		}
	}
	return w, nil
}

const maxNameBytes = 256

// parseIdentity reads a number in plain decimal, or a name. What could be
// taken for a number by a laxer reader ("0x0", "+0", " 0", "-1", "007") is
// neither: such strings were looked up as names, or wrapped around to 0.
func parseIdentity(what, s string) (identity, error) {
	if len(s) > maxNameBytes {
		return identity{}, kind.Errorf(kind.Invalid, "%s: %d bytes, the limit is %d", what, len(s), maxNameBytes)
	}
	if s == "" {
		return identity{}, kind.Errorf(kind.Invalid, "%s is empty", what)
	}
	if id, ok := parseNumber(s); ok {
		return identity{id: &id}, nil
	}
	bad := func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || r == ':' || r == '/' || r == ','
	}
	if strings.ContainsRune("+-~0123456789", rune(s[0])) || strings.ContainsFunc(s, bad) || !utf8.ValidString(s) {
		return identity{}, kind.Errorf(kind.Invalid, "%s %q is neither a name nor a number within 0 and %d", what, clip(s), maxID)
	}
	return identity{name: s}, nil
}

// parseNumber takes digits only, without leading zeros, up to maxID.
func parseNumber(s string) (uint32, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
