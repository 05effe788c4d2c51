package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imagesCommand(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List images",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(func(c *client) error { return a.listImages(cmd.Context(), c, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	return cmd
}

func (a *app) listImages(ctx context.Context, c *client, quiet bool) error {
	images, err := c.listImages(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(images, func(x, y *cri.Image) int { return cmp.Compare(imageTitle(x), imageTitle(y)) })
	if a.format == "json" {
		return printJSON(a.out, images)
	}
	if quiet {
		for _, image := range images {
			fmt.Fprintln(a.out, image.GetId())
		}
		return nil
	}
	rows := [][]string{{"IMAGE", "TAG", "ID", "SIZE", "PINNED"}}
	for _, image := range images {
		pinned := ""
		if image.GetPinned() {
			pinned = "pinned"
		}
		for _, name := range imageTitles(image) {
			repository, tag := splitTag(name)
			rows = append(rows, []string{printable(repository), printable(tag), shortID(image.GetId()), bytesText(image.GetSize()), pinned})
		}
	}
	return table(a.out, rows)
}

// imageTitles are an image's tags, or a digest reference if it has none.
func imageTitles(image *cri.Image) []string {
	if len(image.GetRepoTags()) > 0 {
		return image.GetRepoTags()
	}
	if len(image.GetRepoDigests()) > 0 {
		return image.GetRepoDigests()[:1]
	}
	return []string{"<none>"}
}

func imageTitle(image *cri.Image) string { return imageTitles(image)[0] }

// splitTag splits "host:5000/name:tag" and "name@sha256:…".
func splitTag(name string) (repository, tag string) {
	if repository, _, ok := strings.Cut(name, "@"); ok {
		return repository, "<none>"
	}
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return name[:i], name[i+1:]
	}
	return name, "<none>"
}
