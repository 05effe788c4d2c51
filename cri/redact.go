package cri

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	api "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxText bounds error messages in replies and logs, in bytes: they end up in
// events of the API server, and the text may be an image's or a registry's.
const maxText = 4 << 10

const hidden = "[hidden]"

// Secrets that are recognised by where they stand, whoever sent them: user and
// password of URLs, signatures and tokens in queries (pre-signed blob URLs), and
// credentials of Authorization headers.
var secretPatterns = []*regexp.Regexp{
	regexp.MustCompile(`(://)[^/\s@"']+(@)`),
	regexp.MustCompile(`(?i)([?&;](?:[a-z0-9_.-]*(?:token|signature|credential|password|secret|policy|account)|sig|se|sp|key|key-pair-id)=)[^&\s"']+()`),
	regexp.MustCompile(`(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9+/_.~=-]{8,}()`),
}

// cleanText makes a message fit to be shown: without the secrets of its
// request, without those that stand in known places, valid UTF-8 (gRPC turns
// anything else into an error of its own), and no longer than maxText.
func cleanText(text string, secrets []string) string {
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, hidden)
	}
	whole := len(text)
	// The patterns look only at what can be shown, with room for what they
	// shorten: they are slow on a mebibyte that a registry sent.
	text = text[:min(whole, 8*maxText)]
	for _, p := range secretPatterns {
		text = p.ReplaceAllString(text, "${1}"+hidden+"${2}")
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) <= maxText && whole <= 8*maxText {
		return text
	}
	const room = 40 // for the note
	cut := min(len(text), maxText-room)
	for cut > 0 && cut < len(text) && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return fmt.Sprintf("%s… (%d bytes more)", text[:cut], max(whole-cut, 0))
}

// secretsOf are the strings of a request that must not be repeated anywhere,
// in every form that a registry client may put them on the wire.
func secretsOf(req any) []string {
	pull, ok := req.(*api.PullImageRequest)
	if !ok || pull.GetAuth() == nil {
		return nil
	}
	a := pull.Auth
	password := a.Password
	forms := []string{a.Auth, a.IdentityToken, a.RegistryToken, password}
	if plain, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
		if _, p, ok := strings.Cut(string(plain), ":"); ok {
			forms = append(forms, p, string(plain))
		}
	}
	if password != "" {
		forms = append(forms, base64.StdEncoding.EncodeToString([]byte(a.Username+":"+password)))
	}
	var secrets []string
	for _, form := range forms {
		// Shorter ones would be found in any text, and so guard nothing.
		if len(form) < 3 {
			continue
		}
		secrets = append(secrets, form)
		if escaped := url.QueryEscape(form); escaped != form {
			secrets = append(secrets, escaped)
		}
		if escaped := url.PathEscape(form); escaped != form {
			secrets = append(secrets, escaped)
		}
	}
	return secrets
}
