#!/bin/sh
# Launches a link with an archive in the place of each shared library that has one beside it. (CMake's packages name
# the distribution's shared libraries; a program that is carried to another machine wants the archives.)
for argument; do
  shift
  case $argument in
    *.so | *.so.*)
      archive=${argument%%.so*}.a
      [ ! -e "$archive" ] || argument=$archive ;;
  esac
  set -- "$@" "$argument"
done
exec "$@"
