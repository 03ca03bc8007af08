//! YAML and JSON documents → objects, with errors that name file, document and field.
