/* Linked into sanitizer builds: plugins stay loaded, so that leak reports keep their names. */
int dlclose(void *handle);
int dlclose(void *handle)
{
    (void)handle;
    return 0;
}
