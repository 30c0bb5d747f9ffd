// A git client made of go-git, the library that Flux and many others use. Driven by test_go_git.py.
//
//	gogit list URL
//	gogit clone URL DIRECTORY [DEPTH]
//	gogit commit DIRECTORY FILE CONTENT
//	gogit fetch DIRECTORY
//	gogit push DIRECTORY REFSPEC...
//
// The credential is in the environment: QUOREPO_USER and QUOREPO_TOKEN.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/memory"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, arguments []string) error {
	auth := &http.BasicAuth{
		Username: os.Getenv("QUOREPO_USER"),
		Password: os.Getenv("QUOREPO_TOKEN"),
	}
	switch command {
	case "list":
		return list(auth, arguments[0])
	case "clone":
		return clone(auth, arguments)
	case "commit":
		return commit(arguments[0], arguments[1], arguments[2])
	case "fetch":
		repository, err := git.PlainOpen(arguments[0])
		if err != nil {
			return err
		}
		err = repository.Fetch(&git.FetchOptions{Auth: auth, Tags: git.AllTags})
		if errors.Is(err, git.NoErrAlreadyUpToDate) {
			return nil
		}
		return err
	case "push":
		return push(auth, arguments[0], arguments[1:])
	}
	return fmt.Errorf("unknown command %q", command)
}

func list(auth *http.BasicAuth, url string) error {
	settings := &config.RemoteConfig{Name: "origin", URLs: []string{url}}
	remote := git.NewRemote(memory.NewStorage(), settings)
	references, err := remote.List(&git.ListOptions{Auth: auth})
	for _, reference := range references {
		fmt.Println(reference)
	}
	return err
}

func clone(auth *http.BasicAuth, arguments []string) error {
	options := &git.CloneOptions{URL: arguments[0], Auth: auth}
	if len(arguments) > 2 {
		depth, err := strconv.Atoi(arguments[2])
		if err != nil {
			return err
		}
		options.Depth = depth
	}
	_, err := git.PlainClone(arguments[1], false, options)
	return err
}

func commit(directory string, name string, content string) error {
	repository, err := git.PlainOpen(directory)
	if err != nil {
		return err
	}
	tree, err := repository.Worktree()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o644); err != nil {
		return err
	}
	if _, err := tree.Add(name); err != nil {
		return err
	}
	author := &object.Signature{Name: "Go Git", Email: "go@example.com", When: time.Unix(1700000000, 0)}
	hash, err := tree.Commit("change "+name, &git.CommitOptions{Author: author})
	fmt.Println(hash)
	return err
}

func push(auth *http.BasicAuth, directory string, specifications []string) error {
	repository, err := git.PlainOpen(directory)
	if err != nil {
		return err
	}
	options := &git.PushOptions{Auth: auth}
	for _, specification := range specifications {
		options.RefSpecs = append(options.RefSpecs, config.RefSpec(specification))
	}
	return repository.Push(options)
}
