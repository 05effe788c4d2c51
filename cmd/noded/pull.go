package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func pullCommand(a *app) *cobra.Command {
	var creds string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Pull images",
		Args:  needArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := readCreds(creds, a.in)
			if err != nil {
				return err
			}
			return a.withClient(func(c *client) error {
				return each(args, func(name string) error {
					id, err := a.pull(cmd.Context(), c, name, auth, quiet)
					if err == nil {
						fmt.Fprintln(a.out, id)
					}
					return err
				})
			})
		},
	}
	cmd.Flags().StringVar(&creds, "creds-from", "", "file (or - for stdin) with user:password for the registry")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress, only the image's id")
	return cmd
}

// readCreds reads a password from a file and not from the command line, which
// every user of the machine can see.
func readCreds(file string, stdin io.Reader) (*cri.AuthConfig, error) {
	if file == "" {
		return nil, nil
	}
	source := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		defer f.Close()
		source = f
	}
	text, err := io.ReadAll(io.LimitReader(source, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(text), "\r\n"), ":")
	if !ok {
		return nil, errors.New("read credentials: the file does not say user:password")
	}
	return &cri.AuthConfig{Username: user, Password: password, Auth: base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}, nil
}

// pull pulls one image and shows progress on stderr. The CRI's PullImage says
// nothing until it is done; noded has a stream beside it that tells how far
// every pull is, and another runtime gets a bar that only shows life.
func (a *app) pull(ctx context.Context, c *client, name string, auth *cri.AuthConfig, quiet bool) (id string, err error) {
	watching, stop := context.WithCancel(ctx)
	shown := make(chan struct{})
	bar := newPullBar(a.err, name)
	if quiet {
		bar = newPullBar(io.Discard, name)
	}
	go func() {
		defer close(shown)
		bar.run(watching, c.conn)
	}()
	reply, err := c.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name, UserSpecifiedImage: name}, Auth: auth})
	stop()
	<-shown
	if err != nil {
		bar.end("")
		return "", fmt.Errorf("pull %s: %w", name, err)
	}
	bar.end("done")
	return reply.GetImageRef(), nil
}

// ensureImage pulls an image that is not there.
func (a *app) ensureImage(ctx context.Context, c *client, name string) (id string, err error) {
	reply, err := c.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		return "", fmt.Errorf("look for image %s: %w", name, err)
	}
	if reply.GetImage() != nil {
		return reply.GetImage().GetId(), nil
	}
	return a.pull(ctx, c, name, nil, false)
}

func isNotFound(err error) bool { return err != nil && status.Code(err) == codes.NotFound }

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
